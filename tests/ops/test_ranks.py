"""The best of each group, and some of each."""

from __future__ import annotations

import torch

from b2inst.ops.ranks import best_of_groups, drawn_of_groups


def test_each_group_keeps_its_best_in_order():
    generator = torch.Generator().manual_seed(0)
    scores, groups = torch.rand(200, generator=generator), torch.randint(0, 7, (200,), generator=generator)
    wanted = []
    for group in range(7):
        members = sorted((k for k in range(200) if groups[k] == group), key=lambda k: -float(scores[k]))
        assert len(members) > 9
        wanted += members[:9]
    assert best_of_groups(scores, groups, 9).tolist() == wanted


def test_ties_keep_their_order_and_small_groups_all():
    groups = torch.tensor([2, 0, 2, 2, 0])
    assert best_of_groups(torch.ones(5), groups, 2).tolist() == [1, 4, 0, 2]
    assert best_of_groups(torch.ones(5), groups, 64).tolist() == [1, 4, 0, 2, 3]
    assert best_of_groups(torch.ones(0), groups[:0], 2).tolist() == []


def test_equal_chances_for_all_where_scores_are_random():
    groups, drawn = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2]), set()
    for seed in range(40):
        kept = best_of_groups(torch.rand(8, generator=torch.Generator().manual_seed(seed)), groups, 2)
        assert groups[kept].tolist() == [0, 0, 1, 2, 2]
        drawn |= set(kept.tolist())
    assert drawn == set(range(8))


def test_what_is_drawn_is_some_of_each_group_and_the_same_where_that_is_asked_for():
    groups = torch.tensor([2, 0, 0, 2, 2, 0, 1])
    torch.manual_seed(0)
    draws = {tuple(drawn_of_groups(groups, 2).tolist()) for _ in range(40)}
    assert len(draws) > 5 and all(groups[list(kept)].tolist() == [0, 0, 1, 2, 2] for kept in draws)
    state = torch.get_rng_state()
    assert len({tuple(drawn_of_groups(groups, 2, fixed=True).tolist()) for _ in range(5)}) == 1
    assert torch.equal(torch.get_rng_state(), state)
