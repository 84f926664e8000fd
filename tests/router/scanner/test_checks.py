"""Check digits, issuer ranges, dates: what passes and what does not, each seen from the right end of a text."""

from __future__ import annotations

import random

import pytest

from benchmarks.examples import card as card_example
from benchmarks.examples import iban as iban_example
from router.scanner import checks, secrets


def one_digit_changed(text: str, chance: random.Random) -> str:
    at = chance.choice([place for place, letter in enumerate(text) if letter.isdigit() and place > 3])
    return text[:at] + str((int(text[at]) + chance.randint(1, 9)) % 10) + text[at + 1 :]


def test_cards_and_accounts_are_found_at_the_end_of_any_text_and_never_with_a_wrong_digit() -> None:
    chance = random.Random(5)
    for check, make in ((checks.card, card_example), (checks.iban, iban_example)):
        for _ in range(200):
            value = make(chance).value
            assert check(f"pay 12 to {value}"), value
            assert not check(f"pay to {one_digit_changed(value, chance)}")


def test_a_form_in_an_address_writes_a_space_as_a_plus() -> None:
    chance = random.Random(6)
    for check, make in ((checks.card, card_example), (checks.iban, iban_example)):
        values = [make(chance).value for _ in range(50)]
        assert any(" " in value for value in values)
        assert all(check("?number=" + value.replace(" ", "+")) for value in values)


@pytest.mark.parametrize("before", ["x", "9", "_", "3."])
def test_a_card_number_inside_something_longer_is_none(before: str) -> None:
    value = card_example(random.Random(2)).value.replace(" ", "").replace("-", "")
    assert checks.card(f" {value}")
    assert not checks.card(before + value)


def test_numbers_in_columns_are_no_card() -> None:
    assert not checks.card("4 5 3 9 1 4 8 8 0 3 4 3 6 4 6 7")


@pytest.mark.parametrize(("text", "said"), [
    ("1976-07-04", True), ("4.7.1976", True), ("07/04/76", True), ("1976-13-04", False), ("31/31/1976", False),
])  # fmt: skip
def test_birthdays_are_dates(text: str, said: bool) -> None:
    assert checks.birthday(f"born {text}") is said


@pytest.mark.parametrize(("text", "said"), [
    ("9.9.9.9", True), ("2620:fe::fe:9", True), ("v1.9.9.9", False), ("1.9.9.9.9", False), ("12:30:45", False),
])  # fmt: skip
def test_addresses_are_no_versions_or_times(text: str, said: bool) -> None:
    assert checks.ip(f"at {text}") is said


def test_a_phone_number_is_one_that_some_country_gives_out() -> None:
    assert checks.phone("call +49 30 901820")
    assert not checks.phone("add +1 2")


def value(size: int = 20) -> str:
    chance = random.Random(size)
    return "".join(chance.choice("ABCDEFabcdef0123456789xyzXYZ") for _ in range(size))


@pytest.mark.parametrize("text", [
    "password = get_password()", "token = self.next_token ", "secret=${SECRET} ", "api_key: <your-api-key>",
    "token: str = None ",
    "password = 'example' ", "token=xxxxxxxxxxxxxxxx ", 'password: "password"', "token = tokens2 ",
    "secret_key = os.environ[", "password: your-api-key-here ", "password = $DB_PASSWORD1 ", "password: $this->secret ",
    'password: "sk-xxxxxxxxxxxx"', "password: ./keys/db.pem ", "password: https://vault.internal/v1/db1 ",
    "password: %DB_PASSWORD% ", "password: $this->",
    "password: &settings.password ",
])  # fmt: skip
def test_code_and_placeholders_are_no_secrets(text: str) -> None:
    assert not secrets.assigned(text)


def test_a_few_equal_letters_in_a_token_are_no_mask() -> None:
    """Of some thirty thousand tokens one has four x in a row by chance."""
    for middle in ("XXXX", "xXxx", "xxxxx"):
        assert secrets.varied(f"ghp_{value(16)}{middle}{value(15)}")
    for masked in ("xxxxxx", "X" * 20):
        assert not secrets.varied(f"ghp_{value(8)}{masked}{value(7)}")


@pytest.mark.parametrize("begins", [
    "$ecret", "Sample", "sample-", "test", "Example", "your", "None-", "{", "%", "&", "*", "@", "/", "\\", "http",
    "dummy", "****", "xxxx", "...",
])  # fmt: skip
def test_what_only_begins_like_a_placeholder_is_a_secret(begins: str) -> None:
    rest = "Hunt" + "77er-kx!"
    for text in (f'password: "{begins}{rest}"', f"password: {begins}{rest} "):
        assert secrets.assigned(text) == (begins != "{"), text
    assert secrets.password_in_address(f"postgres://app:{begins}{rest}@d") == (begins not in ("/", "@"))


@pytest.mark.parametrize("value", ["${PASSWORD}", "{{ pw }}", "%(password)s", "$PASSWORD", "%s"])
def test_a_whole_reference_in_an_address_is_none(value: str) -> None:
    assert not secrets.password_in_address(f"postgres://app:{value.replace(' ', '')}@d")


def test_what_is_assigned_to_a_password_is_one() -> None:
    assert secrets.assigned(f"DB_PASSWORD={value()} ")
    assert secrets.assigned(f'"api_key": "{value()}"')
    assert secrets.assigned_in_words("my password is Hunt" + "er2! ")
    assert not secrets.assigned_in_words("my password is forgotten ")
    assert secrets.password_in_address(f"postgres://app:{value()}@d")
    assert not secrets.password_in_address("postgres://app:${PASSWORD}@d")
