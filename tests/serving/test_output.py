"""What a person reads on a terminal, however narrow it is."""

import pytest

from serving import output
from serving.loop import Checked


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")


def test_an_interval_stands_beside_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"policy": "hold", "value": 1.5, "low": 1.0, "high": 2.0, "lift": 0.5, "lift_low": None, "lift_high": 0.75}]
    output.show({"values": rows}, as_json=False)
    said = capsys.readouterr().out
    assert "1.5 [1, 2]" in said
    assert "0.5 [-, 0.75]" in said
    assert "low" not in said


def test_a_table_too_wide_for_the_terminal_lies_on_its_side(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"policy": name, **{f"a_measure_{i}": "1.25 ± 0.25" for i in range(5)}} for name in ("hold", "thompson")]
    output.show(rows, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert sum("1.25 ± 0.25" in line for line in lines) == 5
    assert max(map(len, lines)) <= 50
    assert any(line.split() == ["│", "policy", "│", "hold", "│", "thompson", "│"] for line in lines)


def test_sentences_have_a_line_each_and_long_tables_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = ["a reason that takes more letters than a narrow column of a table has for it", "another [bold] one"]
    output.show({"reasons": reasons, "names": ["a", "b"], "rows": [{"x": 1}] * 3}, as_json=False, long=("rows",))
    said = capsys.readouterr().out
    assert "- a reason that" in said
    assert "- another [bold] one" in said
    assert "a, b" in said
    assert "3 rows, with --json" in said


def test_the_worst_checks_come_first_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_checks(
        [
            Checked(check="Weights average one", status="pass", finding="mean weight 1.000", mend=""),
            Checked(check="Draws can be made again", status="fail", finding="3 of 9 differ [of 9]", mend="look " * 30),
        ]
    )
    fail, passed, counts = capsys.readouterr().out.splitlines()
    assert fail.startswith("fail Draws can be made again: 3 of 9 differ [of 9]; look look")
    assert passed == "pass Weights average one: mean weight 1.000"
    assert counts == "2 checks: 1 fail, 0 warn, 1 pass"
