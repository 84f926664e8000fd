"""`keys`: what a key may do is what was asked for, and the key itself is shown once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.commands.context import Stop, open_context, operator
from router.commands.keys import existing_first_key, first_key
from serving.home import Home
from tests.fakes.command_line import Said

Say = Callable[..., Said]


def test_a_key_for_programs(say: Say) -> None:
    made = say(
        "keys", "create", "--team", "search", "--data-class", "public", "--lanes", "cheap", "--budget", "2.50",
        "--substitute", "--expires", "90d", "--json",
    ).json()  # fmt: skip
    assert made["key"].startswith(f"hg_{made['id']}_") and made["key"].endswith(made["last4"])
    assert (made["team"], made["data_class"], made["lanes"]) == ("search", "public", ["cheap"])
    assert made["budget_usd"] == 2.5 and made["substitute"] is True
    assert made["expires"] - made["created"] > 89 * 86400
    listed = say("keys", "list", "--json").json()
    assert [k["id"] for k in listed] == [made["id"]] and "key" not in listed[0] and "mac" not in listed[0]


def test_a_key_without_a_class_is_private_unless_the_site_says_otherwise(say: Say, home: Home) -> None:
    assert say("keys", "create", "--team", "a", "--json").json()["data_class"] == "private"
    (home.root / "headgate.yaml").write_text("keys: {data_class: internal, lanes: [cheap], budget_usd: 7}\n")
    made = say("keys", "create", "--team", "a", "--json").json()
    assert (made["data_class"], made["lanes"], made["budget_usd"]) == ("internal", ["cheap"], 7)


def test_the_text_of_a_new_key_stands_alone_on_the_first_line(say: Say) -> None:
    said = say("keys", "create", "--team", "a")
    text, rest = said.out.split("\n", 1)
    assert text.startswith("hg_") and "shown this once" in rest
    assert text.split("_")[1] in rest and text not in rest


def test_set_changes_what_is_named_and_nothing_else(say: Say) -> None:
    key = say("keys", "create", "--team", "a", "--budget", "5", "--json").json()["id"]
    said = say("keys", "set", key, "--data-class", "public", "--expires", "1h")
    assert "data class public" in said.out and "works until" in said.out
    found = say("keys", "list", "--json").json()[0]
    assert (found["data_class"], found["budget_usd"]) == ("public", 5)
    say("keys", "set", key, "--budget", "none", "--expires", "never")
    found = say("keys", "list", "--json").json()[0]
    assert found["budget_usd"] is None and found["expires"] is None


def test_a_key_may_ask_for_a_stronger_model_only_if_somebody_said_so(say: Say) -> None:
    key = say("keys", "create", "--team", "a", "--json").json()
    assert key["scopes"] == []
    assert "may escalate" in say("keys", "set", key["id"], "--escalate").out
    made = say("keys", "rotate", key["id"], "--json").json()
    assert made["scopes"] == ["escalate"]
    say("keys", "set", made["id"], "--no-escalate")
    assert {k["id"]: k["scopes"] for k in say("keys", "list", "--json").json()}[made["id"]] == []


def test_how_a_keys_requests_wait_is_set_and_shown(say: Say) -> None:
    made = say("keys", "create", "--team", "nightly", "--latency", "batch", "--json").json()
    assert made["latency"] == "batch"
    assert "batch, works" in " ".join(say("keys", "list").out.split())
    assert "batch" not in say("keys", "set", made["id"], "--latency", "interactive").out
    wrong = say("keys", "set", made["id"], "--latency", "slow")
    assert wrong.code == 1 and "give interactive or batch" in wrong.err


def test_what_a_key_may_is_given_and_taken_one_by_one(say: Say) -> None:
    key = say("keys", "create", "--team", "a", "--declassify", "--json").json()
    assert key["scopes"] == ["declassify"]
    assert "may escalate, may declassify" in say("keys", "set", key["id"], "--escalate").out
    said = say("keys", "set", key["id"], "--no-declassify").out
    assert "may escalate" in said and "declassify" not in said
    assert say("keys", "rotate", key["id"], "--json").json()["scopes"] == ["escalate"]


def test_what_a_key_requires_and_its_media_are_set_shown_kept_and_lifted(say: Say) -> None:
    made = say("keys", "create", "--team", "a", "--json").json()
    assert (made["media_class"], made["requires"]) == ("private", [])
    said = say("keys", "set", made["id"], "--requires", "region:eu, no-training", "--media-class", "internal").out
    assert "media internal, requires no-training and region:eu, works" in said
    assert "requires no-training and region:eu" in " ".join(say("keys", "list").out.split())
    new = say("keys", "rotate", made["id"], "--json").json()
    assert (new["media_class"], new["requires"]) == ("internal", ["no-training", "region:eu"])
    say("keys", "set", new["id"], "--requires", "none", "--media-class", "private")
    found = {k["id"]: k for k in say("keys", "list", "--json").json()}[new["id"]]
    assert (found["media_class"], found["requires"]) == ("private", [])


def test_limits_a_minute_are_set_shown_kept_and_lifted(say: Say, home: Home) -> None:
    made = say("keys", "create", "--team", "a", "--requests-per-minute", "60", "--tokens-per-minute", "5000", "--json")
    key = made.json()["id"]
    assert (made.json()["requests_per_minute"], made.json()["tokens_per_minute"]) == (60, 5000)
    assert "60 requests, 5000 tokens" in " ".join(say("keys", "list").out.split())
    assert "a minute 5000 tokens," in say("keys", "set", key, "--requests-per-minute", "none").out
    new = say("keys", "rotate", key, "--json").json()
    assert (new["requests_per_minute"], new["tokens_per_minute"]) == (None, 5000)
    (home.root / "headgate.yaml").write_text("keys: {requests_per_minute: 7}\n")
    assert say("keys", "create", "--team", "a", "--json").json()["requests_per_minute"] == 7
    lifted = say("keys", "create", "--team", "a", "--requests-per-minute", "none", "--json").json()
    assert lifted["requests_per_minute"] is None


@pytest.mark.parametrize(("budget", "shown"), [("0", "$0"), ("0.000001", "$0.000001"), ("2.50", "$2.5"), ("20", "$20")])
def test_a_budget_is_shown_in_digits(say: Say, budget: str, shown: str) -> None:
    key = say("keys", "create", "--team", "a", "--json").json()["id"]
    assert f"budget {shown} a month," in say("keys", "set", key, "--budget", budget).out
    assert f"{shown} a month" in " ".join(say("keys", "list").out.split())
    assert f"budget usd: none → {shown[1:]}" in " ".join(say("keys", "log").out.split())


@pytest.mark.parametrize(
    ("command", "option", "length", "says"),
    [
        ("create", "--expires", "0d", "--expires: '0d' is over at once"),
        ("set", "--expires", "00h", "--expires: '00h' is over at once"),
        ("create", "--expires", "99999999999d", "--expires: '99999999999d' is no length of time here"),
        ("rotate", "--overlap", "1y", "--overlap: '1y' is no length of time here"),
    ],
)
def test_a_length_of_time_that_is_none_is_refused_with_its_option(
    say: Say, command: str, option: str, length: str, says: str
) -> None:
    key = say("keys", "create", "--team", "a", "--json").json()["id"]
    said = say("keys", command, *(("--team", "b") if command == "create" else (key,)), option, length)
    assert said.code == 1 and says in said.err
    assert [(k["id"], k["expires"]) for k in say("keys", "list", "--json").json()] == [(key, None)]


def test_one_request_a_minute_is_one(say: Say) -> None:
    key = say("keys", "create", "--team", "a", "--json").json()["id"]
    said = say("keys", "set", key, "--requests-per-minute", "1", "--tokens-per-minute", "1").out
    assert "a minute 1 request, 1 token," in said


def test_rotate_and_revoke(say: Say) -> None:
    key = say("keys", "create", "--team", "a", "--data-class", "internal", "--json").json()["id"]
    new = say("keys", "rotate", key, "--overlap", "1h", "--json").json()
    assert new["id"] != key and new["data_class"] == "internal" and new["key"].startswith("hg_")
    say("keys", "revoke", new["id"])
    states = {k["id"]: k["state"] for k in say("keys", "list", "--json").json()}
    assert states[new["id"]] == "revoked" and states[key].startswith("works until")
    assert "no longer works" in say("keys", "rotate", new["id"]).err


def test_the_first_key_stays_until_it_is_revoked(say: Say, home: Home) -> None:
    say("keys", "list")
    key, text, made = first_key(open_context(None))
    assert made and first_key(open_context(None)) == (key, text, "")
    assert existing_first_key(home) == text
    assert (home.secrets / "first-key").stat().st_mode & 0o777 == 0o600
    say("keys", "revoke", key.id)
    with pytest.raises(Stop, match=r"^the first key is revoked; make one with: headgate keys create --team NAME, and "):
        existing_first_key(home)
    assert [k["id"] for k in say("keys", "list", "--json").json()] == [key.id]  # asking makes none
    other, another, why = first_key(open_context(None))
    assert other.id != key.id and another != text and why == "the first key is revoked"


def test_the_first_key_rotated_is_the_one_used_from_then_on(say: Say, home: Home) -> None:
    say("keys", "list")
    key, _, _ = first_key(open_context(None))
    other = say("keys", "create", "--team", "a", "--json").json()
    say("keys", "rotate", other["id"])
    assert first_key(open_context(None))[0] == key
    new = say("keys", "rotate", key.id, "--overlap", "1h", "--json").json()
    assert existing_first_key(home) == new["key"]
    assert first_key(open_context(None))[1:] == (new["key"], "")
    assert (home.secrets / "first-key").stat().st_mode & 0o777 == 0o600


def test_a_key_can_be_ended_while_the_configuration_is_broken(say: Say, home: Home) -> None:
    key, other = (say("keys", "create", "--team", "a", "--json").json()["id"] for _ in range(2))
    (home.root / "headgate.yaml").write_text("runn: [a\n")
    assert say("keys", "set", key, "--budget", "3").code == 0
    new = say("keys", "rotate", other, "--json").json()["id"]
    assert say("keys", "revoke", key).out == f"{key} is revoked.\n"
    states = {k["id"]: k["state"] for k in say("keys", "list", "--json").json()}
    assert states[key] == "revoked" and states[new] == "works"
    made = say("keys", "create", "--team", "a")
    assert made.code == 1 and "headgate.yaml" in made.err  # its defaults lie there


def test_no_keys_yet(say: Say) -> None:
    assert "make one with: headgate keys create --team NAME" in say("keys", "list").out
    assert say("keys", "list", "--json").json() == []


def test_the_log_tells_who_let_a_key_send_what(say: Say) -> None:
    key = say("keys", "create", "--team", "a", "--json").json()
    say("keys", "set", key["id"], "--data-class", "public", "--declassify")
    made = say("keys", "rotate", key["id"], "--json").json()
    say("keys", "revoke", key["id"])
    found = say("keys", "log", key["id"], "--json").json()
    assert [one["what"] for one in found] == ["created", "changed", "changed", "revoked"]
    assert {one["user"] for one in found} == {operator()}
    assert found[1]["old"] == {"data_class": "private", "scopes": []}
    assert found[1]["new"] == {"data_class": "public", "scopes": ["declassify"]}
    told = say("keys", "log")
    words = " ".join(told.out.split())
    for said in ("data class: private → public", "scopes: none → declassify", f"created in place of {key['id']}"):
        assert said in words
    assert made["id"] in words and made["key"].split("_")[2] not in words


def test_a_log_without_an_entry_says_so(say: Say) -> None:
    assert "Nothing was written down" in say("keys", "log").out
