from __future__ import annotations

from fednas_core.export.card import card, plain

META = {
    "device": "phone",
    "arch": {"d": [0]},
    "space": {"name": "small"},
    "input": {"name": "images", "shape": ["batch", 1, 8, 8]},
    "output": {"name": "logits", "shape": ["batch", 120]},
    "classes": [f"class {i}" for i in range(120)],
    "cost": {"macs": 452_000, "params": 31_000, "bytes": 124_000},
    "facts": {"data": "digits", "trained": "t", "validation_accuracy": None, "test_accuracy": None, "latency": None},
    "checks": {"samples": 64, "max_abs_error": 3e-7, "tolerance": 1e-4},
    "versions": {"torch": "2.14"},
}


def test_what_was_not_measured_is_a_dash_and_long_lists_end() -> None:
    text = card(META, {"model.onnx": 130_000})
    assert "| Accuracy on the test set | – |" in text
    assert "| Latency, measured where it was exported | – |" in text
    assert "452 k MACs" in text
    assert "130 kB" in text
    assert "class 99 and 20 more" in text
    assert "class 100" not in text
    assert "grey pixels" in text


def test_plain_text_stays_plain() -> None:
    assert plain("a\nb <i>*x*</i> [l](u) `c`|") == "a b &lt;i&gt;\\*x\\*&lt;/i&gt; \\[l\\](u) \\`c\\`\\|"
