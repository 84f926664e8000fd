"""What headgate.yaml names must be there, and a rule that could never match is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.catalogue import Catalogue, load
from serving.yamlfile import ConfigError


def site(folder: Path, text: str) -> Catalogue:
    path = folder / "headgate.yaml"
    path.write_text(text)
    return load(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        site(folder, text)
    return str(caught.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("swap", "said"),
    [
        ("{groups: [[one, other], [one, third]]}", "swap.groups[1][0]: 'one' stands in a group already"),
        ("{groups: [[one, nobody]]}", "swap.groups[0][1]: 'nobody' is not in `run:`, which names: one, other, third"),
        ("{groups: [[one]]}", "swap.groups[0]: a group shares one place, so it names two models or more"),
        ("{sleep_after_s: {nobody: 60}}", "swap.sleep_after_s.nobody: 'nobody' is not in `run:`"),
        ("{sleep_after_s: {one: 0}}", "swap.sleep_after_s.one: give seconds, more than 0"),
        ("{min_stay_s: 0}", "swap.min_stay_s"),
    ],
)
def test_models_that_share_a_place_run_here_and_have_one_place_each(tmp_path: Path, swap: str, said: str) -> None:
    entry = "{place: local, lanes: [private], context: 1024, output: 64}"
    text = f"run: [one, other, third]\nmodels: {{one: {entry}, other: {entry}, third: {entry}}}\nswap: "
    assert said in refusal(tmp_path, text + swap)
    found = site(tmp_path, f"{text}{{groups: [[one, other]], sleep_after_s: {{third: 900}}}}").site.swap
    assert (found.groups, found.min_stay_s, found.sleep_after_s) == ((("one", "other"),), 300, {"third": 900})


def rules(*lines: str) -> str:
    return "\n".join(["escalate:", *(f"  - {line}" for line in lines)])


def test_rules_are_read_in_order_with_everything_they_say(tmp_path: Path) -> None:
    found = site(
        tmp_path,
        rules(
            "{name: maths, when: {words: [prove, step by step], tokens_over: 100, tools: false, schema: true}}",
            "{name: sales, when: {team: sales, key: AbCdEfGh, route: chat/completions}, to: gpt-6.1-sol}",
            "{name: code, when: {words: [class]}, to: qwen3.5-0.8b}",
        ),
    ).site.escalate
    assert [r.name for r in found] == ["maths", "sales", "code"]
    assert [r.to for r in found] == ["frontier", "gpt-6.1-sol", "qwen3.5-0.8b"]
    assert (found[0].when.needs_schema, found[0].when.tools, found[1].when.tools) == (True, False, None)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("{name: a, when: {words: [x]}, to: gpt-nine}",), "2: escalate[0].to: 'gpt-nine' is neither the lane"),
        (("{name: a, when: {words: [x]}, to: cheap}",), "2: escalate[0].to: 'cheap' is neither the lane frontier"),
        (("{name: a, when: {tools: null}}",), "it has no condition"),
        (("{name: a, when: {}}",), "2: escalate[0].when: the rule 'a' can never match: it has no condition"),
        (("{name: a, when: {words: []}}",), "its list of words is empty"),
        (("{name: a, when: {words: ['?!']}}",), "'?!' holds no letter and no digit"),
        (("{name: a, when: {tokens_over: 99999999}}",), "no model takes more than"),
        (("{name: a, when: {route: embeddings}}",), "embeddings name one model"),
        (("{name: a, when: {route: completions, tools: true}}",), "completions have no tools"),
        (("{name: a, when: {route: chat}}",), "2: escalate[0].when.route: must be one of"),
        (
            ("{name: a, when: {word: [x]}}",),
            "2: escalate[0].when.word: unknown field; allowed here: key, route",
        ),
        (("{name: Über, when: {words: [x]}}",), "2: escalate[0].name"),
        (("{when: {words: [x]}}",), "2: escalate[0].name: is required"),
        (
            ("{name: a, when: {words: [x]}}", "{name: a, when: {words: [y]}}"),
            "3: escalate[1].name: two rules are",
        ),
        (
            ("{name: a, when: {words: [x, Y]}}", "{name: b, when: {words: [y], tools: true}}"),
            "3: escalate[1]: the rule 'b' can never match: the rule 'a' before it takes every request",
        ),
        (("{name: a, when: {tokens_over: 10}}", "{name: b, when: {tokens_over: 20}}"), "the rule 'a' before it"),
    ],
)
def test_a_rule_that_cannot_match_or_names_nothing_is_refused_with_its_line(
    tmp_path: Path, lines: tuple[str, ...], says: str
) -> None:
    assert says in refusal(tmp_path, rules(*lines))


@pytest.mark.parametrize(
    "lines",
    [
        ("{name: a, when: {tokens_over: 20}}", "{name: b, when: {tokens_over: 10}}"),
        ("{name: a, when: {words: [x]}}", "{name: b, when: {words: [x, y]}}"),
        ("{name: a, when: {tools: true}}", "{name: b, when: {tools: false}}"),
        ("{name: a, when: {words: [x], tools: true}}", "{name: b, when: {words: [x]}}"),
    ],
)
def test_a_rule_that_can_still_match_something_stays(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert len(site(tmp_path, rules(*lines)).site.escalate) == 2


def test_an_attached_server_may_be_the_target_of_a_rule(tmp_path: Path) -> None:
    text = "attach: [{url: 'http://127.0.0.1:8000', name: ours}]\n"
    assert site(tmp_path, text + rules("{name: a, when: {words: [x]}, to: ours}")).site.escalate[0].to == "ours"


def test_an_attached_server_may_not_bear_the_name_of_a_hosted_model(tmp_path: Path) -> None:
    """Its data is the site's own, a hosted model's goes out: one name would stand for both."""
    text = "attach:\n  - url: 'http://127.0.0.1:8000'\n    name: "
    assert refusal(tmp_path, f"{text}gpt-6.1-sol\n").startswith(
        "headgate.yaml:3: attach[0].name: 'gpt-6.1-sol' is the name of a hosted model; give the server another one"
    )
    assert site(tmp_path, f"{text}qwen3.5-0.8b\n").site.attach[0].name == "qwen3.5-0.8b"  # such a model, elsewhere


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("costs: {frontier: nobody}", "1: costs.frontier: 'nobody' is no hosted model"),
        ("costs: {frontier: qwen3.5-0.8b}", "is no hosted model"),
        ("costs: {gpu_hour_usd: 0}", "1: costs.gpu_hour_usd"),
        ("costs: {utilisation: 1.5}", "1: costs.utilisation"),
        ("costs:\n  throughput:\n    qwn: {input: 1, output: 1}", "3: costs.throughput.qwn: no such local model"),
        ("costs: {throughput: {gpt-6.1-sol: {input: 1, output: 1}}}", "is hosted; what it costs is its `price`"),
        ("routes: {embeddings: {check: json_schema}}", "1: routes.embeddings.check: only answers of chat/completions"),
        ("routes: {chat/completions: {check: xml}}", "1: routes.chat/completions.check"),
        ("router: {queue_length: -1}", "1: router.queue_length"),
    ],
)
def test_costs_checks_and_the_queue(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(tmp_path, text)


def test_throughput_may_be_that_of_the_demo_or_of_a_server_that_names_itself(tmp_path: Path) -> None:
    assert site(tmp_path, "costs: {throughput: {demo: {input: 1, output: 1}}}").site.costs.throughput
    attached = "attach: [{url: 'http://127.0.0.1:8000'}]\ncosts: {throughput: {whoever: {input: 1, output: 1}}}"
    assert site(tmp_path, attached).site.costs.throughput["whoever"].gpus == 1
