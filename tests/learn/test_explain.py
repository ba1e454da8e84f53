"""`explain` covers every name of the registries, and its symbols, papers and code are those of the library."""

import inspect
import json
import re
from functools import partial
from pathlib import Path

from faults import ends

import simple_diffusion
from simple_diffusion.learn.explain import ENTRIES, PAPERS, SYMBOLS, code_of, explain
from simple_diffusion.samplers import SAMPLERS
from simple_diffusion.schedules import SCHEDULES
from simple_diffusion.targets import TARGETS

ALL = [entry for entries in ENTRIES.values() for entry in entries]


def test_every_schedule_target_and_sampler_is_there():
    samplers = {name: info.function for name, info in SAMPLERS.items()}
    for kind, registry in (("schedule", SCHEDULES), ("target", TARGETS), ("sampler", samplers)):
        for name, thing in registry.items():
            thing = thing.func if isinstance(thing, partial) else thing
            assert [entry.thing for entry in ENTRIES[name] if entry.kind == kind] == [thing]


def test_the_symbols_are_those_of_formula_and_code():
    for entry in ALL:
        source = "".join(map(inspect.getsource, entry.shown))
        for symbol in entry.uses.split():
            assert re.search(rf"\b{SYMBOLS[symbol][0]}\b", source), (entry.kind, symbol)
        greek = set(re.findall(r"[αβγεηθλμρσ]", entry.formula))
        assert greek <= set("".join(entry.uses.split())), f"{entry.formula} has a letter without its meaning"


def test_the_papers_are_those_of_the_docstring():
    for entry in ALL:
        cited = set(re.findall(r"(\w+) (?:& \w+ |et al\. )(\d{4})", inspect.getdoc(entry.thing)))
        given = {re.match(r"(\w+).*? (\d{4}),", PAPERS[paper]).groups() for paper, _ in entry.sources}
        assert cited <= given or not given - cited, entry.thing


def test_every_paper_is_used():
    assert {paper for entries in ENTRIES.values() for entry in entries for paper, _ in entry.sources} == set(PAPERS)


def test_the_code_is_that_of_the_file_without_its_docstring():
    for entry in ALL:
        file, line, code = code_of(entry.thing)
        lines = (Path(simple_diffusion.__file__).parents[1] / file).read_text().splitlines()
        assert lines[line - 1] == code.splitlines()[0]
        assert code.splitlines()[-1].strip() in [text.strip() for text in lines]
        assert inspect.getdoc(entry.thing).splitlines()[0] not in code
        compile(code, file, "exec")


def test_the_command(capsys):
    assert ends(["explain"]) == 0
    assert "dpmpp" in capsys.readouterr().out
    assert ends(["explain", "flow"]) == 0
    out = capsys.readouterr().out
    assert out.strip() == explain("flow").strip()
    assert "α = 1 - t" in out
    assert "out* = ε - z₀" in out
    assert ends(["explain", "ddpm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["file"] == "simple_diffusion/samplers.py"
    assert ends(["explain", "cosin"]) == 2
    assert "choose among" in capsys.readouterr().err
