"""The pages of results: all numbers from the newest documents, none lost, and the rest of the page untouched."""

import dataclasses
import json

import pytest

from benchmarks import harness, missed, overview, table

pytestmark = pytest.mark.benchmark

EMPTY = "before\n" + "\n".join(
    f"{table.BEGIN.format(name)}\nstale text\n{table.END.format(name)}\nbetween" for name in ("ratios", "misses")
)


def config_at(folder, presets=("smoke",)):
    (folder / "page.md").write_text(EMPTY)
    return table.Config(
        results=folder,
        readme=folder / "page.md",
        tables=folder / "tables.md",
        plot=folder / "scaling.png",
        presets=presets,
    )


def write(folder, name, rows=(), claims=()):
    shown = harness.Table("title", ("program", "median"), [("|U^T U - I|", "1.00 s")])
    harness.report(name, harness.Options(results=folder, preset="smoke"), rows=rows, table=shown, claims=claims)


def test_both_pages_name_the_device_and_keep_the_rest(tmp_path):
    claim = harness.Claim("speed", "(2, 1)", 3.0, at_least=4, unit="x")
    write(tmp_path, "anything", [{"seconds": 1.0, "error": float("inf")}], [claim])
    config = config_at(tmp_path)
    table.run(config)
    page, tables = config.readme.read_text(), config.tables.read_text()
    assert page.startswith("before\n")
    assert page.endswith("between")
    assert "stale text" not in page
    assert "| anything | speed | (2, 1) | at least 4 x | 3.00 x | not analysed |" in page
    assert "| anything | speed | (2, 1) | at least 4 x | 3.00 x | no |" in tables
    assert "| \\|U^T U - I\\| | 1.00 s |" in tables
    assert f"## `anything` on {harness.environment()['cpu']['model']}" in tables
    table.run(config)
    assert (config.readme.read_text(), config.tables.read_text()) == (page, tables)

    with pytest.raises(ValueError, match="must hold results of the presets gpu; got none"):
        table.run(dataclasses.replace(config, presets=("gpu",)))
    config.readme.write_text("no markers")
    with pytest.raises(ValueError, match="must hold the lines"):
        table.run(config)


def test_the_newest_result_of_a_kind_of_device_counts(tmp_path):
    cpu = {"device": {"platform": "cpu", "kind": "cpu"}, "cpu": {"model": "A", "cores": 2}}
    gpu = {"device": {"platform": "gpu", "kind": "G"}, "cpu": {"model": "A", "cores": 2}}
    other = cpu | {"cpu": {"model": "B", "cores": 1}}
    results = [(cpu, "2026-01-02"), (cpu, "2026-01-01"), (gpu, "2026-01-01"), (other, "2026-01-01")]
    for number, (where, moment) in enumerate(results):
        document = {"benchmark": "scaling", "preset": "default", "environment": where | {"time": moment}}
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
    assert [found["file"] for found in table.newest(tmp_path, ("default",))] == ["0.json", "2.json"]


def committed():
    return table.newest(harness.ROOT / "benchmarks" / "results", ("default", "gpu"))


def test_every_kind_of_ratio_finds_its_numbers_in_the_committed_results():
    """A statement or a key that was renamed in a benchmark would silently lose its line."""
    names = {document["benchmark"] for document in committed()}
    found = {
        name for name, lines in overview.LINES for one in committed() if one["benchmark"] == name and [*lines(one)]
    }
    assert found == names & {name for name, _ in overview.LINES}
    lines = overview.ratios(committed(), table.device_of)
    assert {line[0] for line in lines} >= {
        "one matrix product",
        "pymanopt",
        "geojax",
        "PyTorch eager",
        "Flower",
    }
    headings = table.render(committed())
    for line in lines:
        anchor = line[-1].partition("#")[2].partition(")")[0]
        assert any(overview.anchor(one, table.device_of) == anchor for one in committed())
    assert headings.count("\n## `") == len(committed())


def test_every_missed_target_has_its_reason():
    misses = missed.misses(committed())
    assert len(misses) == sum(claim["met"] is False for one in committed() for claim in one["claims"])
    assert not [line for line in misses if line[-1] == "not analysed"]


def test_a_spread_names_its_ends():
    assert overview.spread({"a": 2.0}) == "2.00 x at a"
    assert overview.spread({"a": 2.0, "b": 3.0, "c": 1.0}) == "1.00 x at c to 3.00 x at b"


def test_the_plot_of_scaling_needs_only_its_rows(tmp_path):
    rows = [
        {"program": program, "d": 8, "K": k, "seconds": 1e-3 * k**2} for program in overview.SHOWN for k in (10, 20, 40)
    ]
    rows += [
        {"fit": "time against K at d = 8", "program": name, "exponent": 2.0, "half_width": 0.1}
        for name in overview.SHOWN
    ]
    document = {"rows": rows, "config": {"dim": 8, "num_classes": 10, "fit_from": [1, 20]}}
    overview.draw_scaling(document, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 0
