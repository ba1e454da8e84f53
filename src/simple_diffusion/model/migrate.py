"""Migration of the records of older formats to the current names.

Format 3 renamed settings, two training targets and the record of the data. Nothing else changed, so that models of
formats 1 and 2 give the same images as before.
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


def migrated(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a model file or checkpoint with the current names.

    Raises KeyError or TypeError if the record has no configuration.
    """
    if not isinstance(record["config"], dict):
        raise TypeError(f"its configuration must be a table, got {record['config']!r}")
    if record["format"] >= 3:
        return record
    config = {RENAMED.get(key, key): value for key, value in record["config"].items()}
    if config.get("target") in RENAMED_TARGETS:
        config["target"] = RENAMED_TARGETS[config["target"]]
    return {**record, "config": config, "info": record["card"]}
