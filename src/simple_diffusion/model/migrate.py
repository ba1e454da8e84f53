"""Migration of the records of older formats to the current names.

Format 3 renamed settings, two training targets and the record of the data. Format 4 added the setting `center` and the
progress of a run. Models of formats 1 to 3 give the same images as before.
"""

from typing import Any

RENAMED = {
    "times": "density",
    "measure": "criterion",
    "lr_shape": "lr_schedule",
    "ema": "ema_length",
    "tell_augment": "augment_conditioning",
    "tolerate": "max_skipped",
}
"""Settings: old name -> new name."""

RENAMED_TARGETS = {"clean": "x0", "velocity": "v"}


def progress_of(config: dict[str, Any], numbers: dict[str, Any]) -> float:
    """The share of a run that is over, by its steps or its seconds."""
    over = numbers["n"] / config["steps"] if config["steps"] else numbers["seconds"] / max(config["seconds"], 1e-9)
    return min(float(over), 1.0)


def migrated(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a model file or checkpoint with the current names.

    Raises KeyError or TypeError if the record has no configuration.
    """
    if not isinstance(record["config"], dict):
        raise TypeError(f"its configuration must be a table, got {record['config']!r}")
    if record["format"] >= 4:
        return record
    record = {**record, "config": {**record["config"], "center": "no"}}
    if "numbers" in record:
        record["numbers"] = {**record["numbers"], "progress": progress_of(record["config"], record["numbers"])}
    if record["format"] == 3:
        return record
    config = {RENAMED.get(key, key): value for key, value in record["config"].items()}
    if config.get("target") in RENAMED_TARGETS:
        config["target"] = RENAMED_TARGETS[config["target"]]
    return {**record, "config": config, "info": record["card"]}
