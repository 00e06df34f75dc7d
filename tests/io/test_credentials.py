"""Tests."""

import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.io.credentials import redact, redact_all

PASSWORDS = st.text(min_size=1, max_size=40)
# Without "=": "user:a@b?c=d@host" also reads as a password "a", a host "b" and a query.
RAW_PASSWORDS = st.text(alphabet="abcXYZ0189@:/?#%&+!$'()*,;~-_.[]{}|^<>\\\\äπ", min_size=1)
SCHEMES = st.sampled_from(["postgresql", "mysql+pymysql", "mssql+pyodbc", "http", "https", "ray"])
PIECES = [
    "http",
    "mysql",
    "://",
    "u",
    ":",
    "p",
    "80",
    "@",
    "h",
    "/",
    "?",
    "#",
    "&",
    ";",
    "=",
    "***",
    "password",
    "token",
    "pwd=",
    "x=1",
    "[",
    "]",
    '"',
]
URL_LIKE = st.lists(st.sampled_from([*PIECES, " "]), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://user:secret@host/db", "postgresql://user:***@host/db"),
        ("mysql+pymysql://u:s@host:3306/db", "mysql+pymysql://u:***@host:3306/db"),
        ("http://u:s@[::1]:5000/x", "http://u:***@[::1]:5000/x"),
        ("http://:s@host", "http://:***@host"),
        ("redis://u:a@b@host", "redis://u:***@host"),
        ("postgresql://u:a:b/c@d@host:1/db?x=1", "postgresql://u:***@host:1/db?x=1"),
        ("postgresql://u:12/3@host/db", "postgresql://u:***@host/db"),
        ("postgresql://u:a?b#c@host/db", "postgresql://u:***@host/db"),
        ("postgresql://u:%40%3A%2F@host/db", "postgresql://u:***@host/db"),
        ("http://u:s@host/db?mail=a@b", "http://u:***@host/db?mail=a@b"),
        ("http://u:s@host/db?password=a@b&x=1", "http://u:***@host/db?password=***&x=1"),
        ("postgresql:///db?host=h&password=s", "postgresql:///db?host=h&password=***"),
        ("h/x?sslpassword=s&token=t&y=2", "h/x?sslpassword=***&token=***&y=2"),
        ("h/x?X-Amz-Signature=s&access_token=t", "h/x?X-Amz-Signature=***&access_token=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3Ds", "mssql+pyodbc:///?odbc_connect=***"),
        ("πhttp://u:s@h, then http://v:t@i.", "πhttp://u:***@h, then http://v:***@i."),
        ('{"uri":"http://u:s@h","mail":"a@b"}', '{"uri":"http://u:***@h","mail":"a@b"}'),
    ],
)
def test_passwords_are_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no URL, but a colon: and a@b.c",
        "http://host:5000/path@v1",
        "http://host:5000/#/experiments/1@x",
        "http://host/a:b?mail=c@d",
        "http://host?x=y:z@b",
        "http://[::1]:5000/a@b",
        "postgresql://host:5432/db?options=a@b",
        "https://user@host/x:y",
        "ssh://git@host:22/repository@v1",
        "sqlite:////tmp/a:b@c/mlflow.db",
        "models:/name@alias",
        "h/x?tokens=5&author=me&design=3",
        "password=in running text",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@given(password=PASSWORDS, scheme=SCHEMES)
def test_an_encoded_password_is_hidden_and_nothing_else(password: str, scheme: str) -> None:
    frame = "error at " + scheme + "://user:{}@host:80/db?x=1&password={}&y=2 (see a@b)"
    secret = quote(password, safe="")
    assert redact(frame.format(secret, secret)) == frame.format("***", "***")


@given(password=RAW_PASSWORDS)
def test_a_password_somebody_forgot_to_encode_is_hidden(password: str) -> None:
    assert redact(f"postgresql://user:{password}@host/db") == "postgresql://user:***@host/db"


@given(st.text() | URL_LIKE)
def test_redacting_twice_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(
    st.text(alphabet=st.characters(exclude_characters="=")).filter(lambda text: "://" not in text)
)
def test_text_without_url_or_parameter_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_json_values_are_redacted_in_depth() -> None:
    value = {"a": ["http://u:s@h", 1, None, {"http://u:s@h": True}], "b": 0.5}
    expected = {"a": ["http://u:***@h", 1, None, {"http://u:***@h": True}], "b": 0.5}
    assert redact_all(value) == expected
    assert value["a"][0] == "http://u:s@h"  # type: ignore[index]  # the original stays


@pytest.mark.parametrize("unit", ["a", "a:", "@", "?", "?password", "a://", ":", "a://u:"])
def test_long_texts_take_linear_time(unit: str) -> None:
    started = time.perf_counter()
    redact(unit * (200_000 // len(unit)))
    assert time.perf_counter() - started < 2
