"""Numbers and addresses that the VM host hands out."""

import pytest

from kvedge import errors
from kvedge.site.host.addresses import AddressPool
from kvedge.site.host.quantities import parse_quantity


@pytest.mark.parametrize(
    ("text", "number"), [("1Gi", 2**30), ("512Mi", 2**29), ("1500m", 2), ("2G", 2 * 10**9), (7, 7)]
)
def test_quantities_are_whole_numbers(text, number):
    """A quantity becomes whole units, rounded up."""
    assert parse_quantity(text) == number


def test_an_address_stays_with_its_key(tmp_path):
    """The same key gets the same address, also from the next host."""
    pool = AddressPool("10.77.16.0/20", tmp_path / "pool.json")
    first, second = pool.take("a"), pool.take("b")
    assert first == "10.77.16.10"
    assert first != second
    assert AddressPool("10.77.16.0/20", tmp_path / "pool.json").take("a") == first


def test_a_freed_address_is_not_given_again_at_once(tmp_path):
    """Old clients of an address should not meet its next owner."""
    pool = AddressPool("10.77.16.0/20", tmp_path / "pool.json")
    first = pool.take("a")
    pool.free("a")
    assert pool.take("b") != first


def test_a_wanted_address_is_given_when_it_is_free(tmp_path):
    """An address that an object's status names already is kept."""
    pool = AddressPool("10.77.32.0/20", tmp_path / "pool.json")
    assert pool.take("a", wanted="10.77.32.99") == "10.77.32.99"
    assert pool.take("b", wanted="10.77.32.99") != "10.77.32.99"
    assert pool.take("c", wanted="192.0.2.1").startswith("10.77.32.")


def test_a_full_network_is_told(tmp_path):
    """No address left is an error with a hint."""
    pool = AddressPool("10.0.0.0/28", tmp_path / "pool.json")
    for number in range(5):
        pool.take(str(number))
    with pytest.raises(errors.SiteError, match="no free address"):
        pool.take("more")
