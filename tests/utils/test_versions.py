from importlib import metadata

from openworldsam.utils.versions import PACKAGES, installed


def test_a_package_that_no_list_of_distributions_has_is_found_by_its_name(monkeypatch):
    """As with Python 3.10, which knows only distributions that list their packages."""
    expected = installed(PACKAGES)
    assert all(expected.values()) and expected["torch"] == metadata.version("torch")
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    assert installed([*PACKAGES, "no_such_package"]) == {**expected, "no_such_package": None}
