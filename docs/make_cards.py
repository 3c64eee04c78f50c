"""Make docs/train-card.png and docs/evaluate-card.png from sample values, with headless Chromium.

python docs/make_cards.py                         the two pictures
python docs/make_cards.py --all FOLDER            both cards, wide and on a phone, light and dark, with hostile rows as well
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from steps.flow.cards import evaluate, page, train  # noqa: E402
from steps.protocol.events import Event  # noqa: E402
from steps.protocol.records import Report  # noqa: E402

HOSTILE = [
    "<script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "</pre><svg onload=document.title='ran'>",
    "[click](javascript:alert(1)) **bold** `code` | a | b |",
    "\x1b[31mred\x1b[0m \u202efdp.exe\u202c \x00 tags:\U000e0041",
    "請把這份訂單轉成 JSON:三個背包,送到台北。",
    "حوّل هذا الطلب إلى JSON: ثلاث حقائب إلى القاهرة (3).",
]
FACTS = {
    "model": "SmolLM2-135M-Instruct",
    "data": "1,200 samples of builtin:orders",
    "method": "lora, rank 8, alpha 16, dropout 0",
    "targets": "all-linear",
    "batch": "8 rows = 2 processes × 1 × 4",
    "sequence length": "512, not packed",
    "learning rate": "0.001, cosine, warm-up 10%",
    "precision": "bf16",
    "seed": "42",
    "base model on the hub": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    "run directory": "/home/me/.lora/LoraFlow/1795532307910274",
}


def sample_story(steps: int = 200) -> train.Story:
    """A training that was interrupted once."""
    chance = random.Random(1)
    story = train.Story("Training smollm2-135m-orders", FACTS, run="LoraFlow/1795532307910274")

    def attempt(number: int, first: int, last: int) -> None:
        story.observe(Event("started", 1795532307.0, number, first, {"of": steps, "world": 2}))
        for step in range(first + 1, last + 1):
            loss = 0.03 + 0.6 * math.exp(-step / 18) + chance.uniform(0, 0.05) * (1 + 4 * math.exp(-step / 30))
            rate = 1e-3 * (step / 20 if step < 20 else 0.5 * (1 + math.cos(math.pi * (step - 20) / (steps - 20))))
            norm = 0.3 + 2 * math.exp(-step / 25) + chance.uniform(0, 0.25)
            figures = {
                "loss": loss,
                "lr": rate,
                "grad_norm": norm,
                "tokens_per_s": chance.gauss(410, 25),
                "seconds": 1.9,
            }
            story.observe(Event("step", 0.0, number, step, {"of": steps, **figures}))
            if step % 40 == 0:
                story.observe(Event("validation", 0.0, number, step, {"loss": 0.045 + 0.35 * math.exp(-step / 22)}))
                story.observe(Event("checkpoint", 0.0, number, step, {"bytes": 29_569_843, "seconds": 0.14}))

    attempt(1, 0, 107)
    story.tell("Attempt 1 failed: worker 1 was killed (signal 9), class preemption. The next one begins in 5 s.")
    attempt(2, 80, steps)
    return story


def sample_account() -> dict[str, float | str]:
    """Where its time went."""
    seconds = {
        "productive": 381.0,
        "startup": 9.4,
        "model_load": 12.2,
        "compile": 3.1,
        "checkpoint": 1.4,
        "validation": 22.8,
    }
    seconds |= {"lost": 51.0, "recovery": 18.3, "exit": 2.0}
    total = sum(seconds.values())
    account = {f"{name}_s": value for name, value in seconds.items()}
    return {
        **account,
        "total_s": total,
        "goodput": seconds["productive"] / total,
        "node_hours": 0.28,
        "cost": 0.6,
        "currency": "USD",
    }


def sample_report(**changes: object) -> Report:
    """A report as the demo's."""
    values: dict[str, object] = {
        "path": "/none", "identity": "id", "digest": "d" * 64, "score_name": "json_fields", "samples": 32, "base_score": 0.018,
        "tuned_score": 0.969, "loss_samples": 64, "base_loss": 0.5553, "tuned_loss": 0.0304, "base_perplexity": 1.74,
        "tuned_perplexity": 1.03, "gate_passed": True,
        "gate": "passed: the tuned model's score must be at least the base model's 1.8%, and is 96.9%",
        "details": {"words": "exact match 0/32 → 27/32, valid JSON 18/32 → 32/32", "interval": [0.91, 0.99], "cut": [3, 0]},
    }  # fmt: skip
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def sample_rows(texts: list[str] | None = None) -> list[dict[str, object]]:
    """Rows of every kind; `texts` stand in prompts and answers."""
    begin = "Turn this order into one JSON object with the keys customer, city, item and quantity.\n\n"
    orders = [
        ("I would like to order 8 backpacks. Deliver to Deepa Rao, Denver.", "Deepa Rao", "Denver", "backpack", 8),
        (
            "Could you ship 10 coffee mugs to Denver? The name is Hana Suzuki.",
            "Hana Suzuki",
            "Denver",
            "coffee mug",
            10,
        ),
        (
            "My name is Goran Petrov and I live in Athens. I need one garden hose by Friday.",
            "Goran Petrov",
            "Athens",
            "hose",
            1,
        ),
        ("3 lamps for Emil Novak in Boston, please.", "Emil Novak", "Boston", "lamp", 3),
    ]
    rows: list[dict[str, object]] = []
    for number, (words, customer, city, item, quantity) in enumerate(orders):
        reference = f'{{"customer": "{customer}", "city": "{city}", "item": "{item}", "quantity": {quantity}}}'
        base = f'{{ "customer": {{ "city": "{city}", "item": "{item}s" }}, "quantity": {quantity} }}'
        tuned = reference if number != 2 else reference.replace("hose", "garden house")
        rows.append(
            {
                "prompt": begin + words,
                "reference": reference,
                "base_answer": base,
                "tuned_answer": tuned,
                "base_score": 0.0,
            }
            | {"base_exact": False, "tuned_score": 1.0 if number != 2 else 0.75, "tuned_exact": number != 2}
        )
    for number, text in enumerate(texts or ()):
        row = {"prompt": begin + text, "reference": text, "base_answer": text * 2, "tuned_answer": text}
        rows.append({**row, "base_score": float(number % 2), "tuned_score": float(number % 3 == 0)})
    return rows


LINEAGE = {
    "run": "LoraFlow/1795532307910274",
    "base.source": "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
    "base.revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "data.source": "builtin:orders",
    "training.rank": 8,
}


def pages(*, hostile: bool) -> dict[str, str]:
    """Both cards as HTML."""
    story = sample_story()
    if hostile:
        story.facts = {**FACTS, "data": HOSTILE[1], HOSTILE[0]: HOSTILE[4]}
        for text in HOSTILE:
            story.tell(text)
    story.close(sample_account())
    rows = sample_rows(HOSTILE if hostile else None)
    title = HOSTILE[0] if hostile else "SmolLM2-135M-Instruct tuned on Orders as JSON"
    view = evaluate.view(title=title, report=sample_report(), samples=rows, lineage=LINEAGE, shown=20)
    return {
        "train": page.page(story.title, page.body("train.html", train.view(story))),
        "evaluate": page.page(title, page.body("evaluate.html", view)),
    }


def picture(html: str, to: Path, *, width: int, height: int, dark: bool = False) -> None:
    """A picture of a page; Chromium makes no window narrower than 500, so a narrow one is shown in a frame."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "card.html")
        source.write_text(html, "utf-8")
        shown = source
        if width < 500:
            shown = Path(scratch, "frame.html")
            frame = f'<iframe src="card.html" style="border:0;width:{width}px;height:{height}px"></iframe>'
            shown.write_text(f'<meta name="color-scheme" content="light dark"><body style="margin:0">{frame}', "utf-8")
        command = [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--screenshot={to}",
        ]
        command += [f"--window-size={max(width, 500)},{height}", f"--user-data-dir={scratch}/profile"]
        command += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        subprocess.run([*command, shown.as_uri()], check=True, capture_output=True, timeout=120)


def main() -> None:
    """See the module's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="every variant, into this folder")
    folder = parser.parse_args().all
    if folder is None:
        for name, html in pages(hostile=False).items():
            picture(html, ROOT / "docs" / f"{name}-card.png", width=1000, height=1240)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("plain", "hostile"):
        for name, html in pages(hostile=kind == "hostile").items():
            (folder / f"{name}-{kind}.html").write_text(html, "utf-8")
            picture(html, folder / f"{name}-{kind}-wide.png", width=1200, height=1800)
            picture(html, folder / f"{name}-{kind}-phone.png", width=390, height=2600)
            picture(html, folder / f"{name}-{kind}-dark.png", width=1200, height=1800, dark=True)
            picture(html, folder / f"{name}-{kind}-phone-dark.png", width=390, height=2600, dark=True)


if __name__ == "__main__":
    main()
