"""config.toml: every setting of a run, and the command that repeats it."""

import json
from dataclasses import asdict, replace

from ..model.config import Config
from ..system.terminal import command_line


def command_of(config: Config, steps: int = 0) -> str:
    """The command that repeats a run.

    steps   the number of steps of a run whose length was given in seconds, so that the command repeats them; 0 takes
            the length from the configuration
    """
    if steps:
        config = replace(config, steps=steps, seconds=0.0)
    defaults = asdict(Config())
    words = ["simple-diffusion", "train", config.data]
    for key, value in asdict(config).items():
        if value != defaults[key] and key != "data":
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += ["--set", f"{key}={text}"]
    return command_line(words)


def config_toml(config: Config, steps: int = 0) -> bytes:
    """The content of config.toml; `steps` as in `command_of`."""
    lines = ["# every setting of this run; the command that repeats it:", f"# {command_of(config, steps)}", ""]
    # Strings, numbers and lists are written in TOML as in JSON, except that TOML has no surrogate pairs and no raw DEL.
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in asdict(config).items()]
    return ("\n".join(lines).replace("\x7f", "\\u007f") + "\n").encode()
