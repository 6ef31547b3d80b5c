"""The README's examples, run as they stand."""

import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from tests.e2e.running import served

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"<!-- test: curl -->\n```bash\n(.*?)```", re.DOTALL)


def test_the_curl_examples_of_the_readme_work_as_written(tmp_path: Path) -> None:
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert len(blocks) >= 4
    with served(tmp_path) as url:
        answers = [_run(block, url=url) for block in blocks]
    introduced, decided, reported, looked = answers[:4]
    assert introduced[0]["customer_id"] == "c-42"
    assert decided[0]["decision_id"] == "d-1"
    assert (reported[0]["accepted"], reported[0]["duplicates"], reported[0]["errors"]) == (2, 0, [])
    assert [row["reason"] for row in reported[0]["decide_now"]] == ["milestone", "quick_win"]
    assert looked[0]["stage"] == "decide"  # the trial moved the customer there
    assert looked[1]["decision_id"] == "d-1"
    assert sum(looked[1]["chances"].values()) > 0


def _run(block: str, *, url: str) -> list[dict[str, Any]]:
    script = block.replace("http://127.0.0.1:8000", url).replace("curl ", "curl --fail-with-body ")
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return [msgspec.json.decode(part) for part in re.split(r"(?<=})\s*(?={)", done.stdout.strip())]
