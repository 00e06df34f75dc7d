"""Users without a home directory."""

import pwd

import pytest


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were of a user whom the system knows by number alone."""

    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
