"""Tables of results."""

from RATE_model.reproduce import cell, made


def test_a_cell_is_a_mean_with_an_error_if_there_is_one():
    assert cell([0.5, 1.0]) == "0.75 ± 0.25" and cell([12.0, 14.0], 0) == "13 ± 1"
    assert cell([0.681]) == "0.68" and cell([3.0], 0) == "3"
    assert cell(None) == cell([]) == ""


def test_a_document_names_its_commits_once():
    document = {"a": {"commit": ["b" * 40, "a" * 40]}, "b": {"commit": ["a" * 40]}, "c": {}}
    assert made(document).endswith(f" at commit {'a' * 12}, {'b' * 12}")
    assert "commit" not in made({"c": {}})
