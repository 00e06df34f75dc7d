"""Experiment files: defaults, former names and mistakes; what the shipped ones search."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from octnas.config import (
    RunConfig,
    check_config,
    load_document,
    resolved,
    shipped_experiments,
)
from octnas.data.settings import DigitsSettings, ImagesSettings
from octnas.errors import ConfigError, SettingWarning
from octnas.pipeline.space import space_of
from octnas.space.budgets import check_budgets
from octnas.space.cost_table import CostLevels
from octnas.space.search_space import SearchSpace
from octnas.training.settings import Recipe, SupernetSettings
from tests.loading import load_config
from tests.settings_tables import README, documented, with_tables

MINIMAL = """\
schema: 1
name: mini
space:
  backbone: thumbnail_resnet
  input_size: [1, 16, 16]
  alphas: [0, 0.5]
  budgets:
    - uniform: 0.5
data:
  source: digits
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return path


def problem(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def settings_within(kind: Any) -> Iterator[type]:
    """The dataclasses of settings that a type's values hold, itself among them."""
    if isinstance(kind, type) and is_dataclass(kind):
        yield kind
        kinds = tuple(get_type_hints(kind).values())
    else:
        kinds = get_args(kind)
    for one in kinds:
        yield from settings_within(one)


@pytest.mark.parametrize("path", shipped_experiments(), ids=lambda path: path.name)
def test_shipped_experiments_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_the_tables_of_settings_are_current() -> None:
    text = README.read_text()
    assert with_tables(text) == text, "run python -m tests.settings_tables"


@pytest.mark.parametrize("kind", sorted(set(settings_within(RunConfig)) - {RunConfig}, key=str))
def test_every_setting_is_documented(kind: Any) -> None:
    names = [name for group in documented(kind)[1] for name in group]
    assert names == [entry.name for entry in fields(kind)]


def test_everything_has_a_default(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "seed: 1\n"))
    assert config.name == "e"
    assert config.space.backbone == "resnet50"
    assert config.space.fixed is None
    assert isinstance(config.data, ImagesSettings)
    assert config.retrain.seeds == (0, 1, 2)
    assert config.search.executor == "local"
    recipes = [one.recipe for one in (config.supernet, config.retrain, config.ranking)]
    assert [recipe.epochs for recipe in recipes] == [60, 110, 30]


def test_a_partial_recipe_keeps_the_defaults_of_its_section(tmp_path: Path) -> None:
    text = "supernet: {recipe: {lr: 0.2}}\n"
    config = load_config(write(tmp_path, text))
    assert config.supernet.recipe == replace(SupernetSettings().recipe, lr=0.2)
    # As files of the first schema meant it.
    config = load_config(write(tmp_path, f"schema: 1\n{text}"))
    assert config.supernet.recipe == Recipe(lr=0.2)
    assert config.retrain.recipe == Recipe()


@pytest.mark.parametrize("text", ["", "# comments only\n", "supernet:\nretrain:\n  # seeds: [0]\n"])
def test_what_is_empty_is_missing(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text)) == load_config(write(tmp_path, "schema: 2\n"))


def test_warm_up_is_shorter_where_epochs_are_few(tmp_path: Path) -> None:
    text = "retrain: {recipe: {epochs: EPOCHS}}\n"
    for epochs, warmup in (("2", 0.2), ("40", 4), ("90", 5)):
        recipe = load_config(write(tmp_path, text.replace("EPOCHS", epochs))).retrain.recipe
        assert (recipe.epochs, recipe.warmup_epochs) == (int(epochs), warmup)


def test_an_override_leaves_aliases_alone(tmp_path: Path) -> None:
    text = "supernet: {recipe: &recipe {epochs: 9}}\nretrain: {recipe: *recipe}\n"
    config = load_config(write(tmp_path, text), ["supernet.recipe.epochs=7"])
    assert (config.supernet.recipe.epochs, config.retrain.recipe.epochs) == (7, 9)


FORMER = [
    ("supernet", "by_role: false", "supernet.by_role is now called supernet.switchable"),
    ("supernet", "workers: 2", "supernet.workers is now called supernet.processes"),
    ("supernet", "teacher: dearest", "supernet.teacher: dearest is now called largest"),
    ("search", "first_rung: 0.5", "search.first_rung is now called search.screening_fraction"),
    ("search", "proxies: true", "search.proxies was removed and is ignored"),
    ("retrain", "ranks: 2", "retrain.ranks is now called retrain.processes"),
    ("retrain", "baselines: [growing]", "retrain.baselines: growing is now called increasing"),
    ("data", "rank_images: 7", "data.rank_images is now called data.search_val_images"),
    ("proxies", "epochs: 2", "proxies was removed and is ignored"),
]


@pytest.mark.parametrize(("section", "setting", "message"), FORMER)
def test_former_names_are_accepted_with_a_line(
    tmp_path: Path, section: str, setting: str, message: str
) -> None:
    text = "data: {source: digits}\n"
    text = (text if section != "data" else "") + f"{section}:\n  {setting}\n"
    text += "  source: digits\n" if section == "data" else ""
    key, value = setting.split(": ")
    line = len(text.splitlines()) - (section in ("data", "proxies"))
    with pytest.warns(SettingWarning) as caught:
        config = load_config(write(tmp_path, text))
    assert [str(one.message) for one in caught] == [f"{tmp_path / 'e.yaml'}:{line}: {message}"]
    with pytest.warns(SettingWarning) as caught:
        other = load_config(
            write(tmp_path, "data: {source: digits}\n"), [f"{section}.{key}={value}"]
        )
    assert [str(one.message) for one in caught] == [f"--set: {message}"]
    assert other == config
    document = load_document(write(tmp_path, text), generated=True)
    assert check_config(document) == config


def test_former_names_mean_what_they_meant(tmp_path: Path) -> None:
    text = "data: {source: folder, rank_per_class: 3}\nsupernet: {by_role: false, workers: 2}\n"
    text += "search: {first_rung: 0.5}\nretrain: {ranks: 4, baselines: [growing, vanilla]}\n"
    with pytest.warns(SettingWarning):
        config = load_config(write(tmp_path, text), ["supernet={teacher: dearest}"])
    assert isinstance(config.data, ImagesSettings)
    assert config.data.search_val_per_class == 3
    assert config.supernet == SupernetSettings(teacher="largest")
    assert config.search.screening_fraction == 0.5
    assert config.retrain.processes == 4
    assert config.retrain.baselines == ("increasing", "vanilla")


def test_an_override_by_a_former_name_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "supernet: {switchable: true}\n")
    with pytest.warns(SettingWarning):
        assert not load_config(path, ["supernet.by_role=false"]).supernet.switchable
    text = "supernet:\n  switchable: true\n  by_role: false\n"
    assert problem(tmp_path, text) == (
        "e.yaml:3: supernet.by_role: is the former name of supernet.switchable, which is set in "
        "line 2; remove one"
    )


def test_resolved_settings_read_back_as_they_were(tmp_path: Path) -> None:
    for path in (*shipped_experiments(), write(tmp_path, MINIMAL)):
        config = load_config(path)
        again = tmp_path / "resolved.yaml"
        again.write_text(yaml.safe_dump(resolved(config), allow_unicode=True))
        assert load_config(again) == config


def test_overrides_win(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    config = load_config(
        path, ["supernet.recipe.lr=1e-3", "retrain.seeds=[7]", "space.budgets.0.uniform=0.25"]
    )
    assert config.supernet.recipe.lr == 0.001
    assert config.retrain.seeds == (7,)
    assert config.space.budgets[0].uniform == 0.25
    folder = load_config(path, ["data={source: folder, root: /x}"]).data
    assert isinstance(folder, ImagesSettings)


def test_a_budget_that_is_a_mere_number_is_a_share_of_vanilla(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL), ["space.budgets=[0.5, 0.65, {uniform: 0.25}]"])
    assert [budget.share for budget in config.space.budgets] == [0.5, 0.65, None]
    assert config.space.budgets[0].name == "0.5 of vanilla"
    assert "space.budgets.0" in problem(tmp_path, MINIMAL, "space.budgets=[true]")


def test_screening_is_refused_where_it_could_miss_the_best(tmp_path: Path) -> None:
    said = problem(
        tmp_path, MINIMAL, "search.screening_fraction=0.5", "space.budgets.0.min_share=0.3"
    )
    assert "screening_fraction" in said
    assert "no min_share" in said
    said = problem(
        tmp_path,
        MINIMAL,
        "search.screening_fraction=0.5",
        "space.budgets=[{activation_share: 0.5}, {uniform: 0.5}]",
    )
    assert "unless all budgets bound macs" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: mini", "nam: mini", "e.yaml:2: nam: unknown key; did you mean 'name'?"),
        (
            "  alphas:",
            "  alpha:",
            "e.yaml:6: space.alpha: unknown key; did you mean 'alphas'?",
        ),
        ("name: mini", "qqq: 1", "e.yaml:2: qqq: unknown key; allowed: schema, name, space"),
        ("    - uniform: 0.5", "    - unform: 0.5", "e.yaml:8: space.budgets.0.unform: unknown"),
        ("schema: 1", "schema: 3", "e.yaml:1: schema: found 3, input should be 1 or 2"),
        ("name: mini", "name: ../up", "e.yaml:2: name: found '../up'"),
        ("name: mini", "name: 5", "e.yaml:2: name: found 5, input should be a valid string"),
        ("  source: digits", "  source: cats", "e.yaml:9: data: found "),
        ("  source: digits", "  paddig: 1\n  source: digits", "e.yaml:10: data.paddig: unknown"),
        (
            "  source: digits",
            "  source: digits\n  padding: 99",
            "e.yaml:11: data.padding: found 99",
        ),
        (
            "  source: digits",
            "  source: digits\n  padding: x",
            "e.yaml:11: data.padding: found 'x'",
        ),
        ("[0, 0.5]", "[0, 1.5]", "e.yaml:6: space.alphas: found [0.0, 1.5], allowed: one or more"),
        ("[0, 0.5]", "0.5", "e.yaml:6: space.alphas: found 0.5, input should be a list"),
        ("    - uniform: 0.5", "    - {uniform: 0.5, macs: 3}", "e.yaml:8: space.budgets.0: found"),
        ("    - uniform: 0.5", "    - uniform: 2", "e.yaml:8: space.budgets.0.uniform: found 2.0"),
    ],
)
def test_mistakes_name_file_line_key_found_and_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in MINIMAL
    found = problem(tmp_path, MINIMAL.replace(old, new, 1))
    assert found.startswith(message)
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("supernet: {recipe: {epochs: 0}}", "supernet.recipe.epochs: found 0, allowed: 1 or more"),
        ("supernet: {recipe: {lr: fast}}", "supernet.recipe.lr: found 'fast', input should be"),
        (
            "supernet: {teacher: foo}",
            "supernet.teacher: found 'foo', input should be a valid number, or 'auto', 'largest'",
        ),
        (
            "supernet: {sampling: macs}",
            "supernet.sampling: found 'macs', input should be 'by_macs'",
        ),
        (
            "tracking: {enabled: off}",
            "tracking.enabled: found 'off', input should be a valid boolean (only true and false",
        ),
        ("search: {executor: slurm}", "search.executor: found 'slurm', input should be 'local'"),
        ("retrain: {seeds: [1, 1]}", "retrain.seeds: found [1, 1], allowed: distinct seeds"),
        (
            "retrain: {workers: true}",
            "retrain.workers: found True, input should be a valid integer",
        ),
        ("seed: 1.5", "seed: found 1.5, input should be a valid integer"),
        ("seed: -1", "seed: found -1, allowed: 0 to 2147483647"),
        ("search: [1]", "search: found [1], input should be a section"),
    ],
)
def test_mistakes_in_other_sections(tmp_path: Path, section: str, message: str) -> None:
    found = problem(tmp_path, MINIMAL + section + "\n")
    assert found.startswith(f"e.yaml:11: {message}")
    assert len(found.splitlines()) == 1


def test_every_mistake_is_shown_at_once(tmp_path: Path) -> None:
    text = MINIMAL + "supernet: {recipe: {epochs: 0}}\nseed: x\n"
    assert len(problem(tmp_path, text).splitlines()) == 2
    text = MINIMAL + "supernt: {}\nsede: 1\n"
    assert len(problem(tmp_path, text).splitlines()) == 2


def test_a_mistake_in_an_override_says_so(tmp_path: Path) -> None:
    assert problem(tmp_path, MINIMAL, "seed=x").startswith("--set: seed: found 'x'")
    assert problem(tmp_path, MINIMAL, "sed=1").startswith("--set: sed: unknown key; did you mean")


def test_numbers_in_yamls_own_writing(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL + "supernet: {recipe: {weight_decay: 1e-4}}\n"))
    assert config.supernet.recipe.weight_decay == 1e-4


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "binary.yaml")


def test_a_password_in_a_wrong_place_is_not_shown(tmp_path: Path) -> None:
    secret = "S3cret" * 20
    url = f"postgresql://user:{secret}@host/db"
    for override in (f"search.executor={url}", f"search={url}", f"seed={url}"):
        found = problem(tmp_path, MINIMAL, override)
        assert "S3cret" not in found
        assert "***" in found


@pytest.mark.parametrize(
    "section",
    [
        "retrain: {seeds: [99999999999999999999]}",
        "retrain: {seeds: [-1]}",
        "supernet: {recipe: {lr: .inf}}",
        "supernet: {recipe: {lr: .nan}}",
        "supernet: {recipe: {weight_decay: .inf}}",
    ],
)
def test_numbers_that_no_training_takes(tmp_path: Path, section: str) -> None:
    assert "found" in problem(tmp_path, MINIMAL + section + "\n")


def test_settings_are_given_by_name() -> None:
    found = set(settings_within(RunConfig))
    assert len(found) > 12
    positional = {
        f"{kind.__name__}.{one.name}" for kind in found for one in fields(kind) if not one.kw_only
    }
    assert positional == set()


SHIPPED = {path.stem: path for path in shipped_experiments()}
# Sites; GMACs at uniform α = .5, .25 and .125 (the paper's networks, see tests/nn/test_published).
IMAGENET = {
    "resnet50": (29, (2.367, 3.104, 3.565)),
    "resnet101": (63, (3.991, 5.598, 6.625)),
    "resnet152": (97, (5.615, 8.092, 9.685)),
}


def shipped(name: str) -> tuple[RunConfig, SearchSpace]:
    """An experiment and its space; of 1,000 classes, but for the digits."""
    config = load_config(SHIPPED[name])
    return config, space_of(config, 10 if isinstance(config.data, DigitsSettings) else 1000)


def test_what_is_shipped() -> None:
    assert set(SHIPPED) == {
        "digits",
        "digits_scratch",
        "digits_learnable",
        "tiny_imagenet",
        "tiny_imagenet_16",
        *IMAGENET,
    }


DEEP = {"resnet101", "resnet152"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in DEEP)) for one in sorted(SHIPPED)],
)
def test_every_budget_can_be_met(name: str) -> None:
    config, space = shipped(name)
    budgets = [budget.resolve(space) for budget in config.space.budgets]
    levels = CostLevels(space)
    check_budgets(budgets, levels)
    for budget in budgets:
        # A budget that admits next to nothing would leave nothing to search.
        assert 1e3 < levels.count(0, budget.max_macs) < space.size


@pytest.mark.parametrize("name", sorted(IMAGENET))
def test_imagenet_budgets_are_the_papers_networks(name: str) -> None:
    config, space = shipped(name)
    sites, gmacs = IMAGENET[name]
    assert len(space.searchable) == sites
    found = [budget.resolve(space).max_macs / 1e9 for budget in config.space.budgets]
    assert tuple(round(macs, 3) for macs in found) == gmacs


@pytest.mark.parametrize("name", sorted(IMAGENET))
def test_every_alpha_is_a_choice_of_its_own(name: str) -> None:
    """Low channels are rounded to multiples of 8: .125 of 64 is the smallest that stays apart."""
    _, space = shipped(name)
    assert all(site.choices == space.alphas for site in space.searchable)
