"""Bits per byte: every byte once, equal to the sum written out by hand, on the text that the baselines see too."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_mini.errors import InputError
from dsv3_mini.interop.save import save_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train import evaluate as evaluate_module
from dsv3_mini.train.documents import Corpus, Document
from dsv3_mini.train.evaluate import bits_per_byte, evaluate_folder, evaluate_model, select_documents
from dsv3_mini.train.loop import train
from dsv3_mini.train.ngram import ngram_bits_per_byte, xz_bits_per_byte
from dsv3_mini.train.tokenizer import Tokenizer

TEXTS = ["Twelve bytes", "naïve – ünïcödé ✓ " * 5, "a line\n    and another one\n" * 12, "x"]
DOCUMENTS = [Document("ab"[i % 2], f"{i}.txt", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture
def model(tiny_model) -> DeepSeekV3:
    torch.manual_seed(0)
    return DeepSeekV3(tiny_model)


def test_a_model_that_knows_nothing_pays_the_same_for_every_token(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = bits_per_byte(model, tokenizer, DOCUMENTS, 16)
    for domain in ("a", "b", "all"):
        texts = [d.text for d in DOCUMENTS if domain in (d.domain, "all")]
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        size = sum(len(text.encode()) for text in texts)
        assert found[domain] == pytest.approx(tokens * math.log2(320) / size, rel=1e-6)


def test_equal_to_the_sum_by_hand_where_a_document_fits_a_window(model, tokenizer):
    text = TEXTS[1][:20]
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    with torch.no_grad():
        log_p = model(torch.tensor([ids[:-1]]), mtp=False).logits.double().log_softmax(-1)[0]
    bits = -sum(log_p[i, token].item() for i, token in enumerate(ids[1:])) / math.log(2)
    found = bits_per_byte(model, tokenizer, [Document("a", "x", text)], 40)
    assert found["all"] == pytest.approx(bits / len(text.encode()), rel=1e-5)


def test_windows_overlap_by_half_and_ask_for_each_token_once(model, tokenizer):
    text, length = TEXTS[2], 8
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    bits = 0.0
    for position in range(1, len(ids)):  # the token at `position` is asked for in the first window that reaches it
        start = 0 if position <= length else math.ceil((position - length) / (length // 2)) * (length // 2)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:position]]), mtp=False).logits[0, -1].double()
        bits -= logits.log_softmax(-1)[ids[position]].item() / math.log(2)
    found = bits_per_byte(model, tokenizer, [Document("a", "x", text)], length)
    assert found["all"] == pytest.approx(bits / len(text.encode()), rel=1e-5)


def test_documents_do_not_see_each_other(model, tokenizer):
    alone = [bits_per_byte(model, tokenizer, [d], 16)["all"] * d.num_bytes for d in DOCUMENTS]
    together = bits_per_byte(model, tokenizer, DOCUMENTS, 16)["all"] * sum(d.num_bytes for d in DOCUMENTS)
    assert together == pytest.approx(sum(alone), rel=1e-6)


def test_the_model_stays_in_the_mode_it_was_in_and_gets_no_gradient(model, tokenizer):
    for mode in (True, False):
        model.train(mode)
        bits_per_byte(model, tokenizer, DOCUMENTS[:1], 16)
        assert model.training is mode
    assert all(p.grad is None for p in model.parameters())


def test_the_baselines_see_the_same_text(model, tokenizer):
    corpus = Corpus(tuple(DOCUMENTS), tuple(DOCUMENTS))
    result = evaluate_model(model, tokenizer, corpus, seq_len=16, max_bytes=200)
    chosen = select_documents(DOCUMENTS, 200)
    assert result["ngram"] == ngram_bits_per_byte(DOCUMENTS, chosen)
    assert result["xz"] == xz_bits_per_byte(chosen)
    assert result["bits_per_byte"] == bits_per_byte(model, tokenizer, chosen, 16)
    by_domain = {domain: sum(d.num_bytes for d in chosen if d.domain == domain) for domain in "ab"}
    assert result["heldout_bytes"] == {**by_domain, "all": sum(by_domain.values())}
    assert "ngram" not in evaluate_model(model, tokenizer, corpus, seq_len=16, max_bytes=200, baselines=False)
    json.dumps(result)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(min_size=1, max_size=60)), min_size=1), st.integers(1, 900))
def test_a_selection_keeps_to_its_size_and_to_the_shares_of_the_domains(texts, max_bytes):
    documents = [Document(domain, f"{i}", text) for i, (domain, text) in enumerate(texts) if _is_utf8(text)]
    if not documents:
        return
    chosen = select_documents(documents, max_bytes)
    originals = {document.name: document for document in documents}
    assert all(originals[d.name].text.startswith(d.text) and d.text for d in chosen)
    assert len({d.name for d in chosen}) == len(chosen)
    total = sum(d.num_bytes for d in documents)
    if total <= max_bytes:
        assert chosen == documents
        return
    assert {d.domain for d in chosen} == {d.domain for d in documents}
    for domain in {d.domain for d in documents}:
        share = sum(d.num_bytes for d in documents if d.domain == domain) * max_bytes / total
        found = sum(d.num_bytes for d in chosen if d.domain == domain)
        assert share - 5 < found <= max(share, 4)  # a character may have 4 bytes, and each domain has at least one
    assert select_documents(list(reversed(documents)), max_bytes) == chosen, "not a matter of order"


def _is_utf8(text: str) -> bool:
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


# Folders


def test_a_run_a_checkpoint_and_the_end_of_training_agree(tiny_run, tmp_path):
    result = train(tiny_run(steps=2, eval_bytes=1000), progress=False)
    of_run = evaluate_folder(result.folder)
    assert of_run["bits_per_byte"] == result.bits_per_byte
    assert of_run["ngram"] == result.evaluation["ngram"] and of_run["xz"] == result.evaluation["xz"]
    assert of_run["seq_len"] == 16 and of_run["checkpoint"] == str(result.checkpoint)
    of_checkpoint = evaluate_folder(result.checkpoint)
    assert of_checkpoint["bits_per_byte"] == of_run["bits_per_byte"]
    shipped = tmp_path / "shipped"  # weights and run.json side by side
    shutil.copytree(result.checkpoint, shipped)
    shutil.copy(result.folder / "run.json", shipped)
    assert evaluate_folder(shipped)["bits_per_byte"] == of_run["bits_per_byte"]
    json.dumps(of_run)


def test_another_text_can_be_named(tiny_run, tmp_path):
    result = train(tiny_run(steps=1), progress=False)
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"A paragraph that is number {n}, {n % 7} of 7." for n in range(200)))
    found = evaluate_folder(result.folder, text=other)
    assert found["corpus"] == str(other)
    assert found["heldout_bytes"] != result.evaluation["heldout_bytes"]


def test_a_folder_of_no_run_is_measured_on_the_embedded_corpus(model, tokenizer, tmp_path, monkeypatch):
    save_pretrained(model, tmp_path / "model", tokenizer)
    asked = []
    corpus = Corpus(tuple(DOCUMENTS), tuple(DOCUMENTS), "embedded")
    monkeypatch.setattr(evaluate_module, "load_corpus", lambda *of: (asked.append(of), corpus)[1])
    found = evaluate_folder(tmp_path / "model")
    assert asked == [(None, None)]
    assert found["corpus"] == "embedded" and found["seq_len"] == 64, "no longer than the model's context"


def test_without_a_checkpoint_or_tokenizer_there_is_a_message(model, tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        evaluate_folder(tmp_path)
    save_pretrained(model, tmp_path / "model")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        evaluate_folder(tmp_path / "model")


def test_a_tokenizer_of_another_model_is_refused(model, tokenizer, tiny_model, tmp_path):
    save_pretrained(DeepSeekV3(tiny_model.replace(vocab_size=280)), tmp_path / "model", tokenizer)
    with pytest.raises(InputError, match=r"more than the model's vocab_size = 280"):
        evaluate_folder(tmp_path / "model")
