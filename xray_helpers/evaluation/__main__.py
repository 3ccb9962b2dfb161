"""Command line: `python -m xray_helpers.evaluation [FOLDER]`, by default the run that `models/latest.txt` names."""

import sys
from pathlib import Path

from xray_helpers.evaluation.report import METRICS, evaluate_run, load_run, write_card
from xray_helpers.files import exit_on_error
from xray_helpers.inference import finding_of
from xray_helpers.metrics import format_interval
from xray_helpers.settings import Settings
from xray_helpers.training.checkpoint import CARD, latest_run, run_folder


def main() -> None:
    """Judge a run on validation and on test; one line each."""
    with exit_on_error():
        folder = run_folder(Path(sys.argv[1])) if len(sys.argv) > 1 else latest_run(Settings.from_env().home / "models")
        model, data = load_run(folder)
        for split in ("val", "test"):
            found = evaluate_run(folder, split, model, data)
            rule, at = next(iter(found["at"].items()))
            finding, rule = finding_of(data.classes), rule.replace("argmax", "the likeliest class")
            what = f"for {finding}: " if finding else f"mean over {', '.join(data.classes)}, each against the rest: "
            skill = f"AUC {format_interval(found['auc'], 4)}, accuracy at {rule} {format_interval(at['accuracy'], 4)}"
            counted = f"of {found['patients']:,} patients" if found["patients"] else "images"
            print(f"{split}: n = {found['n']:,} {counted}, {found['protocol']}; {what}{skill} ({found['intervals']})")
        write_card(folder)
        description = data.settings.data_description
        print(f"models/{folder.name}: {METRICS}, {CARD}. Data: {description}. Not a medical device.")


if __name__ == "__main__":
    main()
