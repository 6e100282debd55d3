"""The claims ledger: how a verdict comes about, on sample records, and what the shipped methods
claim."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.sample_records import failed, ok, place, write

from leantune.cli import parser
from leantune.files.record import write_json
from leantune.prediction import one
from leantune.prediction.ask import CACHE, Ask
from leantune.results.claims import ledger as claims
from leantune.results.claims.expressions import Value
from leantune.results.claims.ledger import Claim, Condition
from leantune.results.claims.measures import NotRun, Predictions, Records, language
from leantune.results.columns import names
from leantune.results.comparable import Entry
from leantune.spec import plugins
from leantune.spec.hashes import _method_code_hash

METHOD: dict[str, Any] = {
    "name": "lean",
    "summary": "A method that claims something.",
    "slot": "adaptation",
    "base": "lora",
    "paper": {"arxiv": "1234.56789"},
}
CLAIM: dict[str, Any] = {
    "name": "better",
    "claim": "Scores better than lora.",
    "published": "better",
    "source": "abstract",
    "scope": "embedded",
    "setting": "paper",
    "by_construction": False,
    "measure": 'gain("sentiment", "lean", "lora")',
    "expect": {"above": 0},
}


@pytest.fixture(autouse=True)
def everything_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample records carry no real hashes."""
    monkeypatch.setattr("leantune.results.load.is_stale", lambda _: False)


def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: dict[str, Any]) -> None:
    """A method `lean` whose claims are CLAIM with these changes; None takes a key away."""
    place_ = folder / "plugins" / "methods" / "lean"
    place_.mkdir(parents=True, exist_ok=True)
    stated = [{k: v for k, v in {**CLAIM, **change}.items() if v is not None} for change in changes]
    (place_ / "method.yaml").write_text(yaml.safe_dump({**METHOD, "claims": stated}))
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(folder / "plugins"))
    plugins.read.cache_clear()


def ledger(folder: Path, *words: str) -> list[dict[str, str]]:
    (folder / "records").mkdir(exist_ok=True)
    assert parser.main(["claims", "--records", str(folder / "records"), *words]) == 0
    with (folder / "tables" / "claims.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row(folder: Path, monkeypatch: pytest.MonkeyPatch, **change: Any) -> dict[str, str]:
    plugin(folder, monkeypatch, change)
    (found,) = ledger(folder, "lean")
    return found


def seeds(method: str, *quality: float, **more: Any) -> list[dict[str, Any]]:
    return [ok(method, seed, value, **more) for seed, value in enumerate(quality)]


def records(*found: dict[str, Any]) -> Records:
    return Records([Entry(place(record), record["status"], record) for record in found])


BETTER = [*seeds("lean", 0.90, 0.91, 0.92), *seeds("lora", 0.80, 0.82, 0.81)]


# ------------------------------------------------------------------ verdicts


def test_a_gain_whose_whole_interval_is_above_is_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *BETTER)
    found = row(tmp_path, monkeypatch)
    assert (found["verdict"], found["method"], found["paper"], found["scope"]) == (
        "supported",
        "lean",
        "1234.56789",
        "embedded",
    )
    assert float(found["measured"]) == pytest.approx(0.1)
    assert 0 < float(found["low"]) < 0.1 < float(found["high"])
    assert (
        found["command"].count("leantune run") == 1
    )  # the sample records' command, the same for both
    assert "3 seeds" in found["why"]


def test_a_broken_figure_flips_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *BETTER)
    assert row(tmp_path, monkeypatch)["verdict"] == "supported"
    write(tmp_path, *seeds("lean", 0.70, 0.71, 0.72))
    assert row(tmp_path, monkeypatch)["verdict"] == "refuted"


def test_an_interval_on_both_sides_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *seeds("lean", 0.9, 0.7, 0.8), *seeds("lora", 0.8, 0.82, 0.7))
    found = row(tmp_path, monkeypatch)
    assert found["verdict"] == "undecided"
    assert "both sides" in found["why"]


@pytest.mark.parametrize(("quality", "way"), [(0.9, "same way"), (0.7, "other way")])
@pytest.mark.parametrize("setting", ["inferred", "scaled_down"])
def test_another_setting_only_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quality: float, way: str, setting: str
) -> None:
    write(tmp_path, *seeds("lean", quality, quality), *seeds("lora", 0.8, 0.8))
    found = row(tmp_path, monkeypatch, setting=setting)
    assert found["verdict"] == "undecided"
    assert way in found["why"]
    assert f"{quality - 0.8:.4g}" in found["why"]
    assert row(tmp_path, monkeypatch, setting=setting, identity=True)["verdict"] in (
        "supported",
        "refuted",
    )


def test_a_missing_or_failed_record_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *seeds("lora", 0.8, 0.8), failed("lean"))
    found = row(tmp_path, monkeypatch)
    assert (found["verdict"], found["measured"]) == ("not_run", "")
    assert "no valid record of 'lean' and 'lora' on 'sentiment'" in found["why"]


def test_a_stale_record_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *BETTER)
    monkeypatch.setattr(
        "leantune.results.load.is_stale", lambda record: record["cell"]["method"] == "lean"
    )
    assert row(tmp_path, monkeypatch)["verdict"] == "not_run"


def test_records_of_another_key_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *seeds("lean", 0.9, 0.9, key={"batch": 8}), *seeds("lora", 0.8, 0.8))
    assert row(tmp_path, monkeypatch)["verdict"] == "not_run"


def test_a_claim_that_needs_more_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = row(
        tmp_path, monkeypatch, scope="paper", needs="a GPU and the hub", measure=None, expect=None
    )
    assert (found["verdict"], found["why"]) == ("not_run", "needs a GPU and the hub")


def test_what_is_by_construction_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *BETTER)
    found = row(tmp_path, monkeypatch, by_construction=True, setting="inferred")
    assert (found["by_construction"], found["verdict"]) == ("true", "undecided")
    assert found["why"].startswith("by construction")


@pytest.mark.parametrize(
    ("also", "verdict"), [({"near": 2, "tolerance": 0}, "supported"), ({"at_least": 3}, "refuted")]
)
def test_a_joint_claim_holds_where_all_of_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also: dict[str, float], verdict: str
) -> None:
    write(tmp_path, *BETTER[:3], *seeds("lora", 0.80, 0.82, 0.81, peak=500))
    measure = 'ratio("sentiment", "lean", "lora", "peak_memory_bytes")'
    assert (
        row(tmp_path, monkeypatch, also=[{"measure": measure, "expect": also}])["verdict"]
        == verdict
    )


NUMBERS = st.floats(-1e6, 1e6)


@given(
    st.sampled_from(["inferred", "scaled_down"]),
    st.booleans(),
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=3),
    st.lists(
        st.tuples(st.sampled_from(claims.RULES), NUMBERS, st.floats(0, 2)), min_size=3, max_size=3
    ),
)
def test_nothing_is_decided_in_another_setting_unless_it_is_an_identity(
    setting: str, by_construction: bool, values: list[tuple], conditions: list[tuple]
) -> None:
    found = [Value(sorted(v)[1], min(v), max(v)) for v in values]
    stated = tuple(Condition("1", *c) for c in conditions[: len(found)])
    words = ("m", "p", "name", "claim", "published", "source", "embedded")
    assert (
        Claim(*words, setting, by_construction, False, None, stated).verdict(found)[0]
        == "undecided"
    )
    identity, paper = (
        Claim(*words, s, by_construction, i, None, stated).verdict(found)[0]
        for s, i in ((setting, True), ("paper", False))
    )
    assert identity == paper


@given(NUMBERS, st.floats(0, 1e6), NUMBERS, st.floats(0, 2))
def test_a_condition_is_decided_by_the_whole_interval(
    low: float, width: float, bound: float, tolerance: float
) -> None:
    value = Value(low + width / 2, low, low + width)
    reach = tolerance * (abs(bound) or 1)
    one_sided = {
        "at_least": lambda x: x >= bound,
        "at_most": lambda x: x <= bound,
        "above": lambda x: x > bound,
    }
    ends = value.bounds
    for rule, test in (*one_sided.items(), ("below", lambda x: x < bound)):
        answers = {test(end) for end in ends}
        assert Condition("1", rule, bound, 0).holds(value) == (
            answers.pop() if len(answers) == 1 else None
        ), rule
    near = Condition("1", "near", bound, tolerance).holds(value)
    if near:
        assert all(bound - reach <= end <= bound + reach for end in ends)
    if near is False:
        assert ends[1] < bound - reach or ends[0] > bound + reach


# ------------------------------------------------------------------ evidence


def test_one_seed_takes_its_interval_from_the_test_examples() -> None:
    truth = [float(i % 2) for i in range(200)]
    flipped = [1 - y for y in truth]
    right, half = ok("lean", predictions=truth, references=truth), [*truth[:100], *flipped[100:]]
    found = records(right, ok("lora", predictions=half, references=truth)).gain(
        "sentiment", "lean", "lora"
    )
    assert found.mean == 0.5
    assert 0.4 < found.bounds[0] < 0.5 < found.bounds[1] < 0.6
    assert "200 test examples" in " ".join(found.notes)
    with pytest.raises(NotRun, match="cannot be paired"):
        records(right, ok("lora")).gain("sentiment", "lean", "lora")


def test_a_lower_loss_is_a_gain() -> None:
    found = records(
        *seeds("lean", 2.0, 2.1, metric="loss", higher=False),
        *seeds("lora", 3.0, 3.2, metric="loss", higher=False),
    ).gain("sentiment", "lean", "lora")
    assert found.mean == pytest.approx(1.05)
    assert found.bounds[0] < 1.05 < found.bounds[1]


def test_agreement_is_the_share_of_equal_predictions() -> None:
    truth = [0.0, 1.0, 1.0, 0.0]
    same = records(
        ok("lean", predictions=truth, references=truth),
        ok("lora", predictions=truth, references=truth),
    )
    assert same.agreement("sentiment", "lean", "lora").mean == 1
    other = ok("lora", predictions=[0.0, 1.0, 0.0, 1.0], references=truth)
    found = records(ok("lean", predictions=truth, references=truth), other)
    assert found.agreement("sentiment", "lean", "lora").mean == 0.5


def test_the_least_over_tasks_names_its_task_and_what_is_missing() -> None:
    found = records(
        *BETTER,
        *seeds("lean", 0.7, 0.7, 0.7, task="topics52"),
        *seeds("lora", 0.8, 0.8, 0.8, task="topics52"),
        *seeds("lora", 0.8, task="valence"),
    )
    spoken = language(Predictions(Path("nowhere")), found)
    least = spoken.evaluate('min_over_tasks(gain(task, "lean", "lora"))')
    assert least.mean == least.bounds[0] == pytest.approx(-0.1)
    assert any("topics52 is the least of 2 tasks" in note for note in least.notes)
    assert "not measured on valence" in least.notes
    greatest = spoken.evaluate('max_over_tasks(gain(task, "lean", "lora"))')
    alone = spoken.evaluate('gain("sentiment", "lean", "lora")')
    assert greatest.mean == alone.mean
    assert greatest.bounds[0] < alone.bounds[0]  # wider: two intervals that hold together
    with pytest.raises(NotRun, match="dialogue"):
        spoken.evaluate('min_over_tasks(gain(task, "lean", "lora"), "dialogue")')


def test_bytes_of_one_seed_are_exact_and_seconds_are_not() -> None:
    found = records(ok("lean", peak=500), ok("lora"))
    assert found.ratio("sentiment", "lean", "lora", "peak_memory_bytes").exact
    seconds = found.ratio("sentiment", "lean", "lora", "step_seconds_median")
    assert seconds.bounds == (-math.inf, math.inf)
    assert "one seed gives no interval" in seconds.notes
    with pytest.raises(NotRun, match="holds no time_vs_full"):
        found.ratio("sentiment", "lean", "lora", "time_vs_full")


def test_times_in_turns_have_the_interval_of_their_rounds_not_of_seeds_that_share_them() -> None:
    timed = {"safe": [0.9, 1.1, 1.0], "adapter": [1.0, 1.0, 1.25]}  # ratios 0.9, 1.1, 0.8
    made = [ok(method, seed) for method in timed for seed in range(5)]
    for record in made:
        record["time"] |= {"vs_full": 1.0, "vs_full_rounds": timed[record["cell"]["method"]]}
    found = records(*made).ratio("sentiment", "safe", "adapter", "time_vs_full")
    half = 4.302653 * np.std([0.9, 1.1, 0.8], ddof=1) / math.sqrt(3)
    assert found.mean == pytest.approx(2.8 / 3)
    assert found.bounds == pytest.approx((2.8 / 3 - half, 2.8 / 3 + half))
    assert found.notes[-1] == "interval from 3 rounds"


def test_a_run_whose_steps_get_cheaper_has_the_mean_of_its_intervals() -> None:
    record = ok("safe")
    record["memory"]["tensors"] |= {
        "flops_per_step": 100,
        "intervals": [{"step": 0, "flops_per_step": 100}, {"step": 40, "flops_per_step": 50}],
    }
    found = records(record)
    assert found.recorded("sentiment", "safe", "mean_flops_per_step").mean == 0.4 * 100 + 0.6 * 50
    assert found.recorded("sentiment", "safe", "flops_per_step").mean == 100


def test_predictions_are_kept_and_made_again_only_for_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []

    def fake(ask: Ask) -> dict[str, Any]:
        asked.append((ask.model, ask.method, ask.batch, dict(ask.settings)))
        numbers = dict.fromkeys(predict_fields, 7)
        return {
            **numbers,
            "parameters": {"total": 3, "trainable": 2, "head": 1},
            "by_kind": dict.fromkeys(kinds, 5),
        }

    kinds = ("weights", "buffers", "gradients", "optimizer", "activations", "temporaries", "inputs")
    predict_fields = (
        "peak_bytes",
        "reserved_bytes",
        "allocated_bytes",
        "optimizer_state_bytes",
        "flops_per_step",
    )
    monkeypatch.setattr(one, "predict", fake)
    for _ in range(2):
        known = Predictions(tmp_path)
        assert known.predicted("gpt2", "lora", "trainable", batch=1, seq=8).mean == 2
        assert known.predicted("gpt2", "lora", "weights", batch=1, seq=8).mean == 5
    assert len(asked) == 1
    found = Predictions(tmp_path).predicted(
        "gpt2", "lora", "peak_bytes", batch=1, seq=8, set="lora.rank=4"
    )
    assert asked[1:] == [("gpt2", "lora", 1, {"lora.rank": 4})]
    assert found.commands == (
        "leantune predict --model gpt2 --method lora --batch 1 --seq 8 --dtype fp32 "
        "--set lora.rank=4",
    )
    for file in tmp_path.rglob("*.json"):
        file.write_text("{")
    Predictions(tmp_path).predicted("gpt2", "lora", "peak_bytes", batch=1, seq=8)
    assert len(asked) == 3


def test_the_states_of_came_are_half_of_adamws_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 N_2d + 8 N_1d + 8 sum(rows + cols) bytes on mini-gpt's shapes, against 8 N."""
    h, layers, vocabulary, positions = 128, 4, 2048, 256
    matrices = [(vocabulary, h), (positions, h)]
    matrices += layers * [(h, 3 * h), (h, h), (h, 4 * h), (4 * h, h)]
    vectors = layers * (2 * 2 * h + 3 * h + h + 4 * h + h) + 2 * h
    state = sum(4 * m * n + 8 * (m + n) for m, n in matrices) + 8 * vectors
    words = {"scope": "footprint", "published": state, "identity": True, "setting": "inferred"}
    measure = 'predicted("mini-gpt", "came", "optimizer_state_bytes", batch=1, seq=64)'
    found = row(
        tmp_path, monkeypatch, **words, measure=measure, expect={"near": state, "tolerance": 0}
    )
    assert (found["verdict"], int(float(found["measured"]))) == ("supported", state)
    wrong = row(
        tmp_path, monkeypatch, **words, measure=measure, expect={"near": state + 1, "tolerance": 0}
    )
    assert wrong["verdict"] == "refuted"


# ------------------------------------------------------------------ the table and the command


def test_a_claim_with_rows_is_one_for_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *BETTER)
    plugin(
        tmp_path,
        monkeypatch,
        {
            "name": "better_than_{other}",
            "measure": 'gain("sentiment", "lean", "{other}")',
            "expect": {"above": "{least}"},
            "each": [{"other": "lora", "least": 0.05}, {"other": "full", "least": 0}],
        },
    )
    first, second = ledger(tmp_path, "lean")
    assert (first["name"], first["verdict"], first["expected"]) == (
        "better_than_lora",
        "supported",
        "above 0.05",
    )
    assert (second["name"], second["verdict"]) == ("better_than_full", "not_run")


def test_columns_and_the_rows_of_other_methods_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *BETTER)
    (tmp_path / "tables").mkdir()
    kept = {**dict.fromkeys(names("claims"), ""), "method": "zeta", "verdict": "supported"}
    before = {**kept, "method": "lean", "verdict": "refuted"}
    with (tmp_path / "tables" / "claims.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names("claims"))
        writer.writeheader()
        writer.writerows([before, kept])
    plugin(tmp_path, monkeypatch, {})
    found = ledger(tmp_path, "lean")
    assert list(found[0])[:10] == (
        [
            "method",
            "paper",
            "claim",
            "published",
            "measured",
            "scope",
            "setting",
            "by_construction",
            "verdict",
            "why",
        ]
    )
    assert [(r["method"], r["verdict"]) for r in found] == [
        ("lean", "supported"),
        ("zeta", "supported"),
    ]
    text = (tmp_path / "tables" / "claims.csv").read_text()
    ledger(tmp_path, "lean")
    assert (tmp_path / "tables" / "claims.csv").read_text() == text


def test_progress_is_a_line_for_each_claim_and_the_ledger_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, *BETTER)
    row(tmp_path, monkeypatch)
    out, err = capsys.readouterr()
    assert "1 of 1: lean better: supported, 0 s left" in err
    assert "1 claims: 1 supported, 0 refuted, 0 undecided, 0 not_run" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"measure": 'gian("sentiment", "lean", "lora")'},
            "claim 'better': 'gian('sentiment', 'lean', 'lora')' is not",
        ),
        (
            {"measure": 'predicted("gpt2", "lora", "peek", batch=1, seq=8)'},
            "claim 'better': predicted(...) has no field",
        ),
        (
            {"measure": 'predicted("gtp2", "lora", "peak_bytes", batch=1, seq=8)'},
            "unknown model 'gtp2'",
        ),
        (
            {"measure": 'predicted("gpt2", "lora", "peak_bytes", batch=1, seq=8, head="causal")'},
            "'causal' is no head; known: classification, mlm, causal-lm, span, seq2seq",
        ),
        (
            {"measure": 'predicted("gpt2", "lora", "peak_bytes", batch=1)'},
            "missing a required argument: 'seq'",
        ),
        ({"measure": 'ratio("sentiment", "lean", "lora", "peak")'}, "'peak' is no column"),
        (
            {"measure": 'recorded("sentiment", "lean", "quality.metric")'},
            "is 'accuracy', which is no number",
        ),
        ({"measure": "().__class__"}, "claim 'better': '().__class__' is not allowed"),
        ({"expect": {"above": "{least}"}}, "'{least}' is no number"),
        ({"expect": {"above": 0, "below": 1}}, "key 'claims.0"),
        ({"expect": {"near": 0}}, "key 'claims.0"),
        ({"scope": "paper"}, "key 'claims.0"),
        ({"measure": None}, "key 'claims.0"),
        ({"setting": "imagined"}, "key 'claims.0.setting'"),
        ({"verdict": "supported"}, "key 'claims.0.verdict'"),
    ],
)
def test_a_wrong_claim_is_one_sentence_that_names_it(
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, *BETTER)
    plugin(tmp_path, monkeypatch, change)
    assert parser.main(["claims", "--records", str(tmp_path / "records"), "lean"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "lean" in error
    assert message in error


def test_two_claims_of_one_name_and_a_folder_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin(tmp_path, monkeypatch, {}, {})
    assert parser.main(["claims", "--records", str(tmp_path), "lean"]) == 2
    assert parser.main(["claims", "--records", str(tmp_path / "nowhere"), "lean"]) == 2
    assert parser.main(["claims", "--records", str(tmp_path), "zero_shot"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "two claims called 'better'" in first
    assert "nowhere is no folder" in second
    assert "no method of zero_shot" in third


# ------------------------------------------------------------------ what is shipped


def test_every_shipped_claim_parses_and_names_what_exists(tmp_path: Path) -> None:
    spoken = language(Predictions(tmp_path / "none"), records())
    stated = claims.load()
    assert {claim.method for claim in stated} == {
        "vocab_pruning",
        "svfit",
        "safe",
        "came",
        "softlms",
    }
    for claim in stated:
        assert "{" not in f"{claim.name}{claim.claim}{claim.published}{claim.source}", claim.name
        assert claim.paper
        for condition in claim.conditions:
            spoken.check(condition.measure)


def test_embedded_claims_without_records_are_not_run(tmp_path: Path) -> None:
    spoken = language(Predictions(tmp_path / "none"), records())
    stated = [claim for claim in claims.load() if claim.scope != "footprint"]
    assert len(stated) > 20
    assert {claim.row(spoken)["verdict"] for claim in stated} == {"not_run"}
    assert all(claim.row(spoken)["why"] for claim in stated)


def test_the_digest_follows_claims_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, monkeypatch, {})
    first = claims.digest()
    assert claims.digest() == first
    plugin(tmp_path, monkeypatch, {"expect": {"above": 1}})
    second = claims.digest()
    (tmp_path / "plugins" / "methods" / "lean" / "method.py").write_text("# changed\n")
    _method_code_hash.cache_clear()
    assert len({first, second, claims.digest()}) == 3


def test_publishing_measures_on_the_published_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, monkeypatch, {})
    monkeypatch.setattr(claims, "load", lambda methods=(), real=claims.load: real(["lean"]))
    write(tmp_path / "results", *BETTER)
    kept = Path(CACHE, "gpt2", "lora", "hash.json")
    write_json(tmp_path / "run" / kept, {"peak_bytes": 1})
    claims.publish(tmp_path / "run", tmp_path / "results")
    with (tmp_path / "results" / claims.FILE).open(newline="") as file:
        assert [r["verdict"] for r in csv.DictReader(file)] == ["supported"]
    assert json.loads((tmp_path / "results" / kept).read_text()) == {"peak_bytes": 1}
