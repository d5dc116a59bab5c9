"""What is judged from GitLab's answers: tables of what was recorded, and what must be said of it."""

import pytest

from pipeline.protection_gitlab import CHECKS, Seen
from pipeline.rest import Refused
from tests.support_protection import changed, judged

KEY = "TIDEGATE_SIGNING_KEY"
MAINTAINERS = {
    "access_level": 40,
    "access_level_description": "Maintainers",
    "user_id": None,
    "group_id": None,
}
DEVELOPERS = {**MAINTAINERS, "access_level": 30, "access_level_description": "Developers + Maintainers"}
NOBODY = {**MAINTAINERS, "access_level": 0, "access_level_description": "No one"}
RELEASE_BOT = {**MAINTAINERS, "access_level": None, "user_id": 17}
MAIN = {"name": "main", "push_access_levels": [MAINTAINERS], "allow_force_push": False}
FORBIDDEN = Refused(403, "403 Forbidden")
NOT_FOUND = Refused(404, "404 Not Found")

GITLAB = Seen(
    project={
        "default_branch": "main",
        "only_allow_merge_if_pipeline_succeeds": True,
        "allow_pipeline_trigger_approve_deployment": False,
    },
    branches=[MAIN],
    environments=[
        {
            "name": "staging",
            "deploy_access_levels": [MAINTAINERS],
            "required_approval_count": 0,
            "approval_rules": [],
        },
        {
            "name": "production",
            "deploy_access_levels": [MAINTAINERS],
            "required_approval_count": 0,
            "approval_rules": [{"group_id": 9, "access_level": None, "required_approvals": 1}],
        },
    ],
    variables=[
        {"key": KEY, "protected": True, "variable_type": "file", "environment_scope": scope}
        for scope in ("pipeline", "staging", "production")
    ],
    runners={
        "gpu": [{"id": 6, "tag_list": ["gpu"], "access_level": "ref_protected"}],
        "deploy": [{"id": 7, "tag_list": ["deploy"], "access_level": "ref_protected"}],
    },
    has_approver=False,
)
APPROVAL = {
    "key": "TIDEGATE_APPROVAL_KEY",
    "protected": True,
    "variable_type": "file",
    "environment_scope": "production",
}


def production(**fields):
    return [GITLAB.environments[0], {**GITLAB.environments[1], **fields}]


def test_a_gitlab_with_all_that_is_relied_on_lacks_nothing():
    assert judged(CHECKS, GITLAB) == ([], [], [])
    assert judged(CHECKS, changed(GITLAB, variables=[*GITLAB.variables, APPROVAL])) == ([], [], [])


MISSING = {
    "no protected branch": ({"branches": []}, "branch main: it is not protected"),
    "another branch alone is protected": (
        {"branches": [{**MAIN, "name": "mainline"}]},
        "branch main: it is not",
    ),
    "a wildcard's dot is no wildcard": ({"branches": [{**MAIN, "name": "m.i*"}]}, "branch main: it is not"),
    "developers push": ({"branches": [{**MAIN, "push_access_levels": [DEVELOPERS]}]}, "developers may push"),
    "a single user pushes": ({"branches": [{**MAIN, "push_access_levels": [RELEASE_BOT]}]}, "single users"),
    "a deploy key pushes": (
        {"branches": [{**MAIN, "push_access_levels": [{**MAINTAINERS, "deploy_key_id": 1}]}]},
        "deploy keys may push",
    ),
    "force push": ({"branches": [{**MAIN, "allow_force_push": True}]}, "may be rewritten (force push)"),
    "a wildcard opens what the name closes": (
        {"branches": [MAIN, {**MAIN, "name": "*", "allow_force_push": True}]},
        "branch main is protected: but it may be rewritten",
    ),
    "developers push to another protected branch": (
        {"branches": [MAIN, {**MAIN, "name": "release/*", "push_access_levels": [DEVELOPERS]}]},
        "protected branch release/*: developers may push, and each protected branch gets TIDEGATE_SIGNING_KEY",
    ),
    "no protected environment": ({"environments": []}, "environment production: it is not protected"),
    "staging is open": (
        {"environments": [GITLAB.environments[1]]},
        "environment staging: it is not protected",
    ),
    "no approval, and developers deploy": (
        {"environments": production(approval_rules=[], deploy_access_levels=[DEVELOPERS])},
        "every developer may deploy, and no approval is asked for",
    ),
    "no approval, and nobody is named": (
        {"environments": production(approval_rules=[], deploy_access_levels=[])},
        "no approval is asked for",
    ),
    "self-review allowed": (
        {"project": {**GITLAB.project, "allow_pipeline_trigger_approve_deployment": True}},
        "nobody approves a deployment of their own: whoever starts the pipeline may",
    ),
    "no key": ({"variables": []}, f"{KEY}: the project has no such variable"),
    "an unprotected key": (
        {"variables": [{**GITLAB.variables[0], "protected": False}]},
        "it is not protected, so any branch's pipeline can read it",
    ),
    "a second key of the same name is unprotected": (
        {
            "variables": [
                *GITLAB.variables,
                {**GITLAB.variables[0], "protected": False, "environment_scope": "dev"},
            ]
        },
        "it is not protected, so any branch's pipeline can read it",
    ),
    "a key that is no file": (
        {"variables": [{**GITLAB.variables[0], "variable_type": "env_var"}]},
        "not of type File",
    ),
    "a key for all jobs, and so for Trivy's": (
        {"variables": [{**GITLAB.variables[0], "environment_scope": "*"}]},
        "the one that runs Trivy, which nobody trusts",
    ),
    "a key for production alone": (
        {"variables": [{**GITLAB.variables[0], "environment_scope": "prod*"}]},
        "it is not given for pipeline, staging",
    ),
    "an approver's key for every job": (
        {"variables": [*GITLAB.variables, {**APPROVAL, "environment_scope": "*"}]},
        "TIDEGATE_APPROVAL_KEY: it is not for the environment production alone",
    ),
    "an unprotected approver's key": (
        {"variables": [*GITLAB.variables, {**APPROVAL, "protected": False}]},
        "TIDEGATE_APPROVAL_KEY: it is not protected",
    ),
    "an approver's key that is no file": (
        {"variables": [*GITLAB.variables, {**APPROVAL, "variable_type": "env_var"}]},
        "TIDEGATE_APPROVAL_KEY: it is not of type File",
    ),
    "no gpu runner": (
        {"runners": {**GITLAB.runners, "gpu": []}},
        "runners with the tag gpu: the project has none",
    ),
    "an open deploy runner": (
        {
            "runners": {
                **GITLAB.runners,
                "deploy": [
                    *GITLAB.runners["deploy"],
                    {"id": 8, "tag_list": ["deploy"], "access_level": "not_protected"},
                ],
            }
        },
        "runners with the tag deploy: #8 would run any branch's jobs",
    ),
    "the plan has no protected environments, and nobody signs": (
        {"environments": NOT_FOUND},
        "this GitLab plan has none, and trust/roles.yaml names no approver",
    ),
}


@pytest.mark.parametrize(("fields", "said"), MISSING.values(), ids=MISSING)
def test_what_gitlab_lacks_is_missing_with_its_remedy(fields, said):
    missing, unasked, _ = judged(CHECKS, changed(GITLAB, **fields))
    assert any(said in text for text in missing), missing
    assert not unasked


GOOD = {
    "nobody pushes": {"branches": [{**MAIN, "push_access_levels": [NOBODY]}]},
    "a push list that is empty": {"branches": [{**MAIN, "push_access_levels": []}]},
    "another protected branch that is as well kept": {"branches": [MAIN, {**MAIN, "name": "release/*"}]},
    "a wildcard protects it": {"branches": [{**MAIN, "name": "ma*"}]},
    "the older single number of approvals": {
        "environments": production(approval_rules=[], required_approval_count=2)
    },
    "an open runner with another tag": {
        "runners": {
            **GITLAB.runners,
            "gpu": [
                *GITLAB.runners["gpu"],
                {"id": 9, "tag_list": ["gpu-small"], "access_level": "not_protected"},
            ],
        }
    },
}


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD)
def test_gitlab_settings_that_protect_as_well_are_no_lack(fields):
    assert judged(CHECKS, changed(GITLAB, **fields)) == ([], [], [])


NOTED = {
    "maintainers alone deploy, without approval": (
        {"environments": production(approval_rules=[])},
        "a second person's approval",
    ),
    "an old GitLab says nothing of self-review": (
        {"project": {"default_branch": "main", "only_allow_merge_if_pipeline_succeeds": True}},
        "this GitLab does not say",
    ),
    "merges do not wait": (
        {"project": {**GITLAB.project, "only_allow_merge_if_pipeline_succeeds": False}},
        "a merge waits for its pipeline to succeed: it does not",
    ),
    "the plan has no protected environments, and an approver signs": (
        {"environments": NOT_FOUND, "has_approver": True},
        "the signed approval is the gate",
    ),
    "the same plan of a version that answers 403": (
        {"environments": FORBIDDEN, "has_approver": True},
        "the signed approval is the gate",
    ),
    "the same plan of a version that answers with an empty list": (
        {
            "environments": [],
            "project": {"default_branch": "main", "only_allow_merge_if_pipeline_succeeds": True},
            "has_approver": True,
        },
        "the signed approval is the gate",
    ),
}


@pytest.mark.parametrize(("fields", "said"), NOTED.values(), ids=NOTED)
def test_what_is_good_to_have_at_gitlab_is_noted_and_stops_nothing(fields, said):
    missing, unasked, noted = judged(CHECKS, changed(GITLAB, **fields))
    assert (missing, unasked) == ([], [])
    assert [said in text for text in noted] == [True]


def test_an_approver_who_signs_does_not_stand_in_for_approvals_that_the_plan_offers_and_nobody_set():
    open_to_all = production(approval_rules=[], deploy_access_levels=[DEVELOPERS])
    missing, _, _ = judged(CHECKS, changed(GITLAB, environments=open_to_all, has_approver=True))
    assert len(missing) == 1


UNKNOWN = {
    "a token that may read neither environments nor variables": {
        "environments": NOT_FOUND,
        "variables": FORBIDDEN,
    },
    "branches refused": {"branches": FORBIDDEN},
    "runners refused": {"runners": {"gpu": FORBIDDEN, "deploy": FORBIDDEN}},
    "a project without a default branch": {"project": {**GITLAB.project, "default_branch": None}},
    "a branch that does not say who pushes": {"branches": [{"name": "main", "allow_force_push": False}]},
    "a branch that does not say whether it is rewritten": {
        "branches": [{"name": "main", "push_access_levels": []}]
    },
    "an access level that is a number": {"branches": [{**MAIN, "push_access_levels": [40]}]},
    "an access level that is a word": {
        "branches": [{**MAIN, "push_access_levels": [{**MAINTAINERS, "access_level": "Maintainers"}]}]
    },
    "approvals that are a word": {"environments": production(approval_rules="one")},
    "a rule that asks for true approvals": {
        "environments": production(approval_rules=[{"required_approvals": True}])
    },
    "a key that does not say whether it is protected": {"variables": [{"key": KEY, "variable_type": "file"}]},
    "a runner without tags": {
        "runners": {**GITLAB.runners, "gpu": [{"id": 1, "access_level": "ref_protected"}]}
    },
}


@pytest.mark.parametrize("fields", UNKNOWN.values(), ids=UNKNOWN)
def test_what_gitlab_does_not_tell_is_neither_there_nor_missing(fields):
    missing, unasked, _ = judged(CHECKS, changed(GITLAB, **fields))
    assert unasked
    assert not missing


def test_a_check_that_cannot_be_judged_does_not_hide_the_others():
    missing, unasked, _ = judged(CHECKS, changed(GITLAB, branches=FORBIDDEN, variables=[]))
    assert len(unasked) == 1
    assert len(missing) == 1
