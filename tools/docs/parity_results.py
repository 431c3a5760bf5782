"""Keep the outcome of the parity suite as data, for the table of supported families.

pytest tests/test_family_parity.py --junitxml=build/parity.xml
python tools/docs/parity_results.py build/parity.xml      # writes docs/data/parity-<version of transformers>.json
"""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).parents[2] / "docs" / "data"
CASE = re.compile(r"test_memory_reads_as_prompt_tokens\[(?P<model>\w+)-(?P<way>[\w ]+)\]")


def outcomes(report: Path) -> dict[str, object]:
    """Versions, and for every model and way of running it `passed`, `failed` or the reason why it was skipped."""
    root = ElementTree.parse(report).getroot()
    versions = {p.get("name"): p.get("value") for p in root.iter("property")}
    found: dict[str, dict[str, str]] = {}
    for case in root.iter("testcase"):
        match = CASE.fullmatch(case.get("name", ""))
        if match is None:
            continue
        outcome, skipped = "passed", case.find("skipped")
        if skipped is not None:
            outcome = f"skipped: {skipped.get('message', '')}"
        elif case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        found.setdefault(match["model"], {})[match["way"]] = outcome
    if not found:
        raise SystemExit(f"{report} holds no result of tests/test_family_parity.py")
    return {"transformers": versions["transformers"], "torch": versions["torch"], "outcomes": found}


if __name__ == "__main__":
    result = outcomes(Path(sys.argv[1]))
    FOLDER.mkdir(exist_ok=True)
    target = FOLDER / f"parity-{result['transformers']}.json"
    target.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(target)
