"""Characters, markup, special tokens, credentials: each check with what it finds and what not."""

import pytest

from rlhf_cli.data.checks import texts
from rlhf_cli.data.checks.finding import EXCERPT, excerpt
from rlhf_cli.data.checks.secret_patterns import find_personal_data, find_secrets, mask_secrets

GITHUB = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3hI6"


def row(text, prompt="Say it."):
    return {"prompt": prompt, "completion": f" {text}"}


@pytest.mark.parametrize(
    ("code", "bad", "good"),
    [
        ("mojibake", "Youâ€™re right", "You’re “right” – naïve café, São «Tomé»"),
        ("mojibake", "cafÃ©", "CAFÉ Ã É"),
        ("mojibake", "clichã©", "manhã» é"),
        ("mojibake", "itâ\x80\x99s", "it’s 20 °C ±1 ½"),
        ("replacement-characters", "caf\ufffd", "café"),
        ("control-characters", "this \x96 that", "this – that\tand\nthese"),
        ("control-characters", "a\x05b", "a\r\nb"),
        ("ansi-escapes", "\x1b[31mred\x1b[0m", "[31mred"),
        ("zero-width-characters", "no\u200bbreak", "joined 👩\u200d👩 می\u200cخواهم"),
        ("zero-width-characters", "a\u200eb", "שלום\u200f!"),
        ("unusual-whitespace", "200\u00a0cm", "200 cm"),
        ("private-use-characters", "\uf0e0 next", "→ next"),
        ("html-entities", "Ben &amp; Jerry", "Ben & Jerry; R&D;"),
        ("html-entities", "it&#39;s", "```html\n&lt;b&gt;\n```"),
        ("escaped-newlines", r"One.\n\nTwo.", "One.\n\nprintf('a\\n\\n')"),
        ("long-lines", "x" * 500, "word " * 500),
        ("long-lines", "word " * 2500, "漢字" * 300),
        ("special-tokens", "bye<|user|>", "bye <user> | <|"),
        ("address-as-response", "https://example.org/a?b=1", "See https://example.org"),
        ("personal-data", "write to jane.doe@acme.co.uk", "write to user@example.com"),
        ("personal-data", "call +49 170 1234567", "1234567890 or 555-0123 or 2.345-678.9012"),
        ("secrets", GITHUB, "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        ("role-marks-in-responses", "Human:  Yes, I can", "The human: a study. User stories:"),
        ("role-marks-in-responses", "Yes.\n\nUser: And now?", "Yes: the Assistant said so."),
        ("unfinished-responses", "word " * 40 + "and the", "word " * 40 + "and the end."),
        (
            "unfinished-responses",
            "word " * 40 + "go,",
            "Items, many of them: " + "word " * 40 + "\n- of",
        ),
        ("open-thoughts", "<think>Hm. Yes", "<think>Hm.</think> Yes"),
    ],
)
def test_each_fault_is_found_and_ordinary_text_is_not(find, code, bad, good):
    found = find(row(bad), row("fine"))[code]
    assert (found.count, found.total) == (1, 2)
    assert [one.location for one in found.examples] == ["rows.jsonl:1"]
    assert code not in find(row(good), row("fine"))


@pytest.mark.parametrize("text", ["Youâ€™re", "Ã¼ber", "â€œyesâ€\x9d", "ä¸\xadæ–‡"])
def test_mojibake_is_what_decodes_as_utf8(text):
    assert texts.find_mojibake(text) is not None


def test_a_text_in_another_script_is_noted(find):
    rows = [row("Say it in English, please."), row("Say it in English again.")]
    found = find(*rows, row("Скажи это по-русски"))["other-scripts"]
    assert (found.count, found.severity) == (1, "note")
    assert "cyrillic" in found.examples[0].text
    assert "other-scripts" not in find(*rows)


def test_rare_symbols_are_noted_and_frequent_ones_are_not(find):
    plain = [row(f"number {i}") for i in range(9)]
    found = find(*plain, row("20 ° and 漢"))["unusual-characters"]
    assert found.count == 1
    assert "° (U+00B0)" in found.message
    assert "unusual-characters" not in find(*[row(f"{i} °") for i in range(9)])


def test_a_few_of_some_faults_are_notes_and_many_a_warning(find):
    many = [row(f"{i} &amp; more") for i in range(3)]
    assert find(*many)["html-entities"].severity == "warning"
    assert find(*many[:2])["html-entities"].severity == "note"


def test_special_tokens_in_messages_stay_text(find):
    messages = [{"role": "user", "content": "a<|end|>b"}, {"role": "assistant", "content": "c"}]
    found = find({"messages": messages})
    assert found["special-tokens-as-text"].severity == "note"
    assert "special-tokens" not in found


def test_marks_of_thoughts_keep_their_meaning(find, tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    thought = [messages[0], {"role": "assistant", "content": "<think>c</think>d"}]
    assert "special-tokens-as-text" not in find({"messages": thought}, tokenizer=tokenizer)
    asked = [{"role": "user", "content": "<think>"}, messages[1]]
    assert "special-tokens-as-text" in find({"messages": asked}, tokenizer=tokenizer)


def test_an_end_token_at_the_end_of_a_response_is_its_own(find):
    assert "special-tokens" not in find(row("bye<|end|>"))
    assert find(row("a<|end|>b"))["end-token-inside"].severity == "warning"
    assert "end-token-inside" not in find(row("a b<|end|>"))


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("AKIAQ3EXAMPL3KEY9ZTW".replace("EXAMPL", "7YRMVX"), "AWS"),
        (GITHUB, "GitHub"),
        ("sk-proj-aB3dE6gH9jK2mN5pQ8sT1vW4", "sk-"),
        ("hf_aB3dEfgHijKlmNopQrsTuvWxyZabCdeFgh", "Hugging Face"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2Q", "web token"),
        ("postgres://joe:kW82jdPq1x@db.acme.io/x", "password"),
    ],
)
def test_a_credential_is_named_and_never_shown(find, secret, kind):
    [(found, start, end)] = find_secrets(f"use {secret}")
    assert kind in found
    assert start == 4
    text = mask_secrets(f"use {secret} now")
    assert secret not in text
    # the text is shown for another reason, and the secret in it is not
    findings = find(row(f"{secret} caf\ufffd"), row(f"{secret} caf\ufffd"))
    shown = [one.text for finding in findings.values() for one in finding.examples]
    assert secret[: end - start] not in " ".join(shown)
    assert findings["secrets"].severity == "warning"


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "sk-your-api-key-goes-right-here",
        "ask-me-anything-about-this-long-topic",
        "postgres://user:password@localhost:5432/db",
        "https://example.org:8080/path@x",
        "task-management-systems-and-their-users",
    ],
)
def test_placeholders_are_no_credentials(text):
    assert not list(find_secrets(text))


@pytest.mark.parametrize("text", ["3.141.592.653", "10.0.0.1", "2021-03-04", "a@b", "x@y.z1"])
def test_numbers_and_other_signs_are_no_personal_data(text):
    assert find_personal_data(text) == ""


def test_an_excerpt_is_short_on_one_line_and_keeps_its_place():
    text = "a" * 1000 + "\x1bHERE\n" + "b" * 1000
    shown = excerpt(text, 1001)
    assert "HERE\\n" in shown
    assert "\x1b" not in shown
    assert len(shown) < EXCERPT + 20
    assert len(excerpt(text)) < EXCERPT + 20
