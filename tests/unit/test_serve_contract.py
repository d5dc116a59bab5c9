"""The table of what the model server promises names tests that are there."""

import re


def test_every_test_of_the_serving_contract_is_there(root):
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "serving_contract.md").read_text()))
    defined = {
        name
        for path in (root / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 50
    assert named - defined == set()
