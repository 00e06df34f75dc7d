"""Latency packs: ONNX files for devices without octnas, and the answers they send back."""

import json
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from octnas.errors import LatencyError, OctnasError
from octnas.io.files import read_json
from octnas.measure import standalone
from octnas.measure.deployed_layers import LayerPlan, plan_layers
from octnas.measure.latency import (
    Log,
    Make,
    as_networks,
    draw_networks,
    fit_table,
    layer,
    network,
    network_key,
)
from octnas.measure.settings import LatencySettings
from octnas.nn.onnx import save_onnx
from octnas.space.cost_table import macs_of
from octnas.space.latency import LONGEST, LatencyTable, LayerTimes, geometry_of
from octnas.space.search_space import SearchSpace

SCRIPT_FILE = "measure.py"


def write_pack(
    space: SearchSpace, settings: LatencySettings, folder: Path, log: Log = lambda _: None
) -> None:
    """Write ONNX files of layers and networks, a manifest, and the script that times them.

    Existing files are kept. Whole networks are spread over MACs, since there are no predictions
    yet, and those of the narrow slice have nearly equal MACs.

    Raises:
        SettingError: the ONNX exporter is not installed.
    """
    plan = plan_layers(space, settings.batch)
    drawn = draw_networks(macs_of(space), settings)
    work: dict[str, Make] = {key: layer(plan, key) for key in plan.modules}
    for alphas in (space.vanilla.alphas, *(alphas for _, alphas in drawn)):
        key = network_key(space, alphas, settings.batch)
        work[key] = network(space.architecture(alphas), settings.batch)
    folder.mkdir(parents=True, exist_ok=True)
    for done, (key, make) in enumerate(work.items(), start=1):
        path = folder / f"{key}.onnx"
        if not path.exists():
            module, inputs = make()
            # Whole or absent, so that an interrupted command resumes.
            half = path.with_suffix(".half")
            save_onnx(module, inputs, half)
            half.replace(path)
        log(f"files: {done} of {len(work)}")
    manifest = _manifest(space, settings, plan, drawn, list(work))
    shutil.copyfile(standalone.__file__, folder / SCRIPT_FILE)
    path = folder / standalone.MANIFEST_FILE
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _manifest(
    space: SearchSpace,
    settings: LatencySettings,
    plan: LayerPlan,
    drawn: Sequence[tuple[str, Mapping[str, float]]],
    keys: Sequence[str],
) -> dict[str, Any]:
    batch = settings.batch
    layers = [
        {
            "name": layer.site.name,
            "site_in": layer.site.site_in,
            "site_out": layer.site.site_out,
            "keys": [[*pair, key] for pair, key in layer.keys.items()],
        }
        for layer in plan.layers
    ]
    networks = [
        {"use": use, "alphas": dict(alphas), "key": network_key(space, alphas, batch)}
        for use, alphas in drawn
    ]
    body = {
        "schema": standalone.SCHEMA,
        "batch": batch,
        "space": space.to_dict(),
        "reference": network_key(space, space.vanilla.alphas, batch),
        "keys": list(keys),
        "layers": layers,
        "networks": networks,
    }
    digest = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
    return {**body, "pack": digest}


def read_answer(path: Path) -> LatencyTable:
    """The table of a device's answer, fitted to the networks it has measured.

    Args:
        path: the answer, or the folder of its pack; no other file is read.

    Raises:
        LatencyError: it is missing or no answer, or the device was too noisy for a fit.
    """
    file = path / standalone.ANSWER_FILE if path.is_dir() else path
    answer = read_json(
        file,
        dict[str, Any],
        schema=standalone.SCHEMA,
        error=LatencyError,
        remedy=f"{SCRIPT_FILE} writes it on the device when it is finished",
    )
    try:
        return _table(answer)
    except OctnasError as error:
        raise LatencyError(f"{file}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise LatencyError(f"{file}: not an answer of {SCRIPT_FILE} ({reason})") from None


def _table(answer: Mapping[str, Any]) -> LatencyTable:
    manifest = answer["manifest"]
    space = SearchSpace.from_dict(manifest["space"])
    seconds = {which: _seconds(answer, manifest, which) for which in ("ratio", "even", "odd")}
    bare = LatencyTable(
        device=str(answer["device"]),
        backend="onnxruntime",
        precision="float32",
        batch=int(manifest["batch"]),
        threads=int(answer["threads"]),
        geometry=geometry_of(space),
        layers=tuple(_layer_times(entry, seconds["ratio"]) for entry in manifest["layers"]),
    )
    # An answer is untrusted: check it as a table from a file.
    bare = LatencyTable.from_dict(json.loads(json.dumps(bare.to_dict())))
    entries = manifest["networks"]
    drawn = [(str(entry["use"]), entry["alphas"]) for entry in entries]
    keys = [entry["key"] for entry in entries]
    return fit_table(bare, space, as_networks(drawn, keys, seconds.__getitem__))


def _seconds(
    answer: Mapping[str, Any], manifest: Mapping[str, Any], which: str
) -> dict[str, float]:
    """Times by key, one for each key of the manifest."""
    found = {}
    for key in manifest["keys"]:
        if not (isinstance(key, str) and standalone.KEY.fullmatch(key)):
            raise LatencyError(f"key: found {str(key)[:40]!r}, allowed: 16 hexadecimal digits")
        found[key] = float(answer["seconds"][which][key])
        if not 0 < found[key] <= LONGEST:
            raise LatencyError(
                f"seconds of {key}: found {found[key]}, allowed: above 0, up to {LONGEST:g}"
            )
    return found


def _layer_times(entry: Mapping[str, Any], seconds: Mapping[str, float]) -> LayerTimes:
    by_pair = {(float(a), float(b)): seconds[key] for a, b, key in entry["keys"]}
    return LayerTimes(str(entry["name"]), entry["site_in"], str(entry["site_out"]), by_pair)
