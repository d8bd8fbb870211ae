"""The one table of statistics: complete, consistent, and read the same way everywhere."""

import re

import pytest

from jaxgeom.diagnostics import CHEAP, SOURCES, STATISTICS, statistic
from jaxgeom.diagnostics.statistics import COMPARED, FURTHER, HEADLINE, KIND_LABELS, null_forms, split_key


@pytest.mark.parametrize("key", STATISTICS)
def test_every_entry_says_what_the_pages_need(key):
    entry = STATISTICS[key]
    assert entry.key == key and entry.label and entry.definition and entry.meaning.endswith(".")
    assert entry.undefined and 0 < entry.agreement < 1 and entry.commands and entry.suites
    for null in (entry.null, entry.along, *entry.further.values()):
        assert null is None or (null.says and re.match(r"(closed|sampled|fixed): ", null.described))


def test_members_of_a_family_are_found_by_their_own_keys():
    assert statistic("energy_top_16").label == "energy in the 16 leading directions"
    assert statistic("sparsity_rms_0.0001").counted and "0.0001·RMS(W0)" in statistic("sparsity_rms_0.0001").definition
    assert statistic("projection_left_10pct").null.says == "k/m" and "10 %" in statistic("projection_left_10pct").label
    assert statistic("overlap_low_enrichment").label == "overlap, low-magnitude mask: ratio to its null"
    assert statistic("nothing_of_ours") is None


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("nss", ("nss", "", "value")),
        ("nss_null", ("nss", "", "null")),
        ("overlap_low_profile_excess", ("overlap_low", "profile", "excess")),
        ("jaccard_rounding_z", ("jaccard", "rounding", "z")),
        ("projection_joint_10pct_null", ("projection_joint_10pct", "", "null")),
        ("stable_rank_permutation_null", ("stable_rank", "permutation", "null")),
    ],
)
def test_a_rows_key_is_taken_apart(key, parts):
    assert split_key(key) == parts


def test_what_is_cheap_and_what_is_averaged_by_size():
    assert {"sparsity_bf16", "density_bf16", "fro_norm", "relative_norm", "decay", "stable_rank"} <= set(CHEAP)
    assert {"participation_ratio", "energy_top_K", "share_beyond_half_ulp", "leakage"} <= set(CHEAP)
    counted = {key for key, entry in STATISTICS.items() if entry.counted}
    sparsities = {key for key in STATISTICS if key.startswith("sparsity_")}
    assert counted == sparsities | {"density_bf16", "share_beyond_half_ulp"}
    assert set(KIND_LABELS) == set(FURTHER) and set(COMPARED) <= set(STATISTICS) and HEADLINE[0] == "relative_norm"


def test_every_source_is_known_and_cited():
    cited = {key for entry in STATISTICS.values() for key in entry.sources}
    cited |= {key for entry in STATISTICS.values() for null in (entry.null, entry.along, *entry.further.values())
              if null is not None for key in null.sources}  # fmt: skip
    assert cited == set(SOURCES)


def test_the_nulls_of_each_command_are_named():
    compare, fast = null_forms("compare"), null_forms("compare", "fast")
    assert compare["stable_rank_bf16"] != null_forms("trajectory")["stable_rank_bf16"]
    assert {"overlap_low", "overlap_low_profile", "nss"} <= compare.keys() and "nss" not in fast
    assert "overlap_low_profile" not in fast and "sim_to_final" in null_forms("trajectory")
    assert {"jaccard", "jaccard_rounding"} <= null_forms("between").keys()
