"""What is judged from GitHub's answers: tables of what was recorded, and what must be said of it."""

import pytest

from pipeline.protection_github import CHECKS, ENVIRONMENTS, Seen
from pipeline.rest import Refused
from tests.support_protection import changed, judged

KEY = "TIDEGATE_SIGNING_KEY"
FORBIDDEN = Refused(403, "403 Forbidden")
NOT_FOUND = Refused(404, "Not Found")
UPGRADE = Refused(403, "Upgrade to GitHub Pro or make this repository public to enable this feature.")
NO_CLASSIC = Refused(404, "Branch not protected")

REVIEWERS = {
    "type": "required_reviewers",
    "prevent_self_review": True,
    "reviewers": [{"type": "User", "reviewer": {"login": "alice"}}],
}
MAIN_ALONE = {"protected_branches": False, "custom_branch_policies": True}
CLASSIC = {
    "allow_force_pushes": {"enabled": False},
    "required_status_checks": {"contexts": ["complete"]},
    "required_pull_request_reviews": {"required_approving_review_count": 1},
}
GITHUB = Seen(
    repository={"default_branch": "main", "private": False},
    branch={"name": "main", "protected": True},
    rules=[{"type": "non_fast_forward"}, {"type": "pull_request"}, {"type": "required_status_checks"}],
    classic=NO_CLASSIC,
    environments=[
        {
            "name": name,
            "deployment_branch_policy": MAIN_ALONE,
            "protection_rules": [REVIEWERS] if name == "production-approval" else [],
            "can_admins_bypass": False,
        }
        for name in ENVIRONMENTS
    ],
    policies={name: [{"name": "main", "type": "branch"}] for name in ENVIRONMENTS},
    secrets={name: [{"name": KEY}] for name in ENVIRONMENTS},
    repository_secrets=[{"name": "SOMETHING_ELSE"}],
    organization_secrets=[],
    has_approver=False,
)


def test_a_github_with_all_that_is_relied_on_lacks_nothing():
    assert judged(CHECKS, GITHUB) == ([], [], [])


def test_an_approver_who_signs_does_not_stand_in_for_reviewers_that_the_plan_offers_and_nobody_set():
    missing, _, _ = judged(CHECKS, changed(GITHUB, environments=without_reviewers(), has_approver=True))
    assert len(missing) == 1


def without_reviewers():
    return [{**each, "protection_rules": []} for each in GITHUB.environments]


def approving(**fields):
    return [
        {**each, **(fields if each["name"] == "production-approval" else {})} for each in GITHUB.environments
    ]


def every_environment(**fields):
    return [{**each, **fields} for each in GITHUB.environments]


MISSING = {
    "no protection": (
        {"branch": {"protected": False}, "rules": []},
        "branch main: it is not protected",
    ),
    "the plan protects no private branch": (
        {"rules": UPGRADE, "classic": UPGRADE, "branch": {"protected": False}},
        "this plan protects no branches of private repositories",
    ),
    "rules that stop no force push": (
        {"rules": [{"type": "deletion"}, {"type": "pull_request"}]},
        "branch main is protected: but it may be rewritten",
    ),
    "older protection that allows force push": (
        {"rules": [], "classic": {**CLASSIC, "allow_force_pushes": {"enabled": True}}},
        "branch main is protected: but it may be rewritten",
    ),
    "no environments": (
        {"environments": [], "secrets": {}},
        "environment production-approval: it does not exist",
    ),
    "one environment is not there": (
        {"environments": GITHUB.environments[1:]},
        "environment pipeline: it does not exist",
    ),
    "any branch uses the environments": (
        {"environments": every_environment(deployment_branch_policy=None)},
        "environment staging: every branch may use it",
    ),
    "another branch uses one": (
        {"policies": {**GITHUB.policies, "production": [{"name": "main"}, {"name": "release/*"}]}},
        "environment production: branch release/* may use it too",
    ),
    "a tag named like the branch uses one": (
        {"policies": {**GITHUB.policies, "production": [{"name": "main", "type": "tag"}]}},
        "environment production: tag main may use it too",
    ),
    "protected branches, which are protected by rulesets alone": (
        {"environments": every_environment(deployment_branch_policy={"protected_branches": True})},
        "it counts no rulesets as protection",
    ),
    "no reviewers": (
        {"environments": without_reviewers()},
        "environment production-approval waits for a reviewer: it asks for nobody",
    ),
    "a list of reviewers that is empty": (
        {"environments": approving(protection_rules=[{**REVIEWERS, "reviewers": []}])},
        "environment production-approval waits for a reviewer: it asks for nobody",
    ),
    "a wait is no reviewer": (
        {"environments": approving(protection_rules=[{"type": "wait_timer", "wait_timer": 30}])},
        "environment production-approval waits for a reviewer: it asks for nobody",
    ),
    "no reviewers on a private repository, and nobody signs": (
        {"environments": without_reviewers(), "repository": {**GITHUB.repository, "private": True}},
        "trust/roles.yaml names no approver",
    ),
    "self-review allowed": (
        {"environments": approving(protection_rules=[{**REVIEWERS, "prevent_self_review": False}])},
        "nobody approves a run of their own: whoever starts it may",
    ),
    "self-review not mentioned": (
        {
            "environments": approving(
                protection_rules=[{"type": "required_reviewers", "reviewers": REVIEWERS["reviewers"]}]
            )
        },
        "nobody approves a run of their own: whoever starts it may",
    ),
    "an environment without the key": (
        {"secrets": {**GITHUB.secrets, "staging": [{"name": "OTHER"}]}},
        f"{KEY} in each environment: staging lacks it",
    ),
    "the key in the whole repository": (
        {"repository_secrets": [{"name": KEY}]},
        "it is the repository's too, so any branch's workflow can read it",
    ),
    "the key in the whole organization": (
        {"organization_secrets": [{"name": KEY}]},
        "it is the organization's too",
    ),
}


@pytest.mark.parametrize(("fields", "said"), MISSING.values(), ids=MISSING)
def test_what_github_lacks_is_missing_with_its_remedy(fields, said):
    missing, unasked, _ = judged(CHECKS, changed(GITHUB, **fields))
    assert any(said in text for text in missing), missing
    assert not unasked


GOOD = {
    "the older protection alone": {"rules": [], "classic": CLASSIC},
    "the older protection alone, and environments for protected branches": {
        "rules": [],
        "classic": CLASSIC,
        "environments": every_environment(deployment_branch_policy={"protected_branches": True}),
    },
    "rules that say all, so the older protection need not be seen": {"classic": FORBIDDEN},
    "an environment that no workflow names": {
        "environments": [*GITHUB.environments, {"name": "demo", "deployment_branch_policy": None}]
    },
}


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD)
def test_github_settings_that_protect_as_well_are_no_lack(fields):
    assert judged(CHECKS, changed(GITHUB, **fields)) == ([], [], [])


NOTED = {
    "no reviewers on a private repository, and an approver signs": (
        {
            "environments": without_reviewers(),
            "repository": {**GITHUB.repository, "private": True},
            "has_approver": True,
        },
        "the signed approval is the gate",
    ),
    "administrators bypass": ({"environments": approving(can_admins_bypass=True)}, "administrators wait too"),
    "pushes without review": (
        {"rules": [{"type": "non_fast_forward"}, {"type": "required_status_checks"}]},
        "changes reach main by pull requests alone",
    ),
    "merges without checks": (
        {"rules": [{"type": "non_fast_forward"}, {"type": "pull_request"}]},
        "a merge waits for its checks to pass: it does not",
    ),
}


@pytest.mark.parametrize(("fields", "said"), NOTED.values(), ids=NOTED)
def test_what_is_good_to_have_at_github_is_noted_and_stops_nothing(fields, said):
    missing, unasked, noted = judged(CHECKS, changed(GITHUB, **fields))
    assert (missing, unasked) == ([], [])
    assert [said in text for text in noted] == [True]


UNKNOWN = {
    "environments refused": {"environments": FORBIDDEN},
    "the rules refused, for want of a right": {
        "rules": Refused(403, "Resource not accessible by integration")
    },
    "the branch refused": {"branch": NOT_FOUND},
    "the older protection refused, and needed": {"rules": [], "classic": Refused(404, "Not Found")},
    "the older protection says nothing of force pushes": {"rules": [], "classic": {"url": "…"}},
    "a branch that is a list": {"branch": []},
    "an environment's secrets refused": {"secrets": {**GITHUB.secrets, "production": FORBIDDEN}},
    "the repository's secrets refused": {"repository_secrets": FORBIDDEN},
    "a secret without a name": {"repository_secrets": [{}]},
    "the branches of an environment refused": {"policies": {**GITHUB.policies, "staging": FORBIDDEN}},
    "rules of an environment that are words": {
        "environments": approving(protection_rules=["required_reviewers"])
    },
    "a repository that does not say whether it is private": {
        "repository": {"default_branch": "main"},
        "environments": without_reviewers(),
    },
}


@pytest.mark.parametrize("fields", UNKNOWN.values(), ids=UNKNOWN)
def test_what_github_does_not_tell_is_neither_there_nor_missing(fields):
    missing, unasked, _ = judged(CHECKS, changed(GITHUB, **fields))
    assert unasked
    assert not missing
