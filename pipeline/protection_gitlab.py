"""What Tidegate's gates rely on at GitLab: looked at (slow, may fail), then judged (pure).

Fields: https://docs.gitlab.com/api/protected_branches/, …/protected_environments/, …/project_level_variables/,
…/runners/ and …/projects/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.doctor import Finding
from pipeline.errors import NoData
from pipeline.keys import APPROVAL_VARIABLE, KEY_VARIABLE
from pipeline.protection import items, none_offered, value
from pipeline.rest import Api, Refused

RUNNER_TAGS = ("gpu", "deploy")  # as in .gitlab-ci.yml
ENVIRONMENTS = ("staging", "production")
SIGNING = ("pipeline", *ENVIRONMENTS)  # whose jobs sign, as in .gitlab-ci.yml
APPROVING = "production"
_MAINTAINER = 40
_ROLE = "It needs the scope read_api and the role Maintainer."
_VARIABLE_FIELDS = ("key", "protected", "variable_type", "environment_scope")


@dataclass(frozen=True)
class Seen:
    """GitLab's answers, each what the API gave or Refused; of variables everything but their values."""

    project: dict
    branches: Any
    environments: Any
    variables: Any
    runners: dict[str, Any]
    has_approver: bool


def look(api: Api, project: str, has_approver: bool) -> Seen:
    """Asks GitLab about a project (its id, or its quoted path). Raises NoData if there is no answer to judge."""
    at = f"/projects/{project}"
    found = api.get(at)
    if isinstance(found, Refused):
        raise NoData(f"{api.host} does not show the project {project} to this token ({found}). {_ROLE}")
    if not isinstance(found, dict):
        raise NoData(f"{api.host} answered about the project with something that is not an object.")
    variables = api.pages(f"{at}/variables")
    if not isinstance(variables, Refused):
        variables = [{name: each.get(name) for name in _VARIABLE_FIELDS} for each in variables]
    return Seen(
        project=found,
        # The list, not the one of this name: a wildcard may protect the branch, and another may open it again.
        branches=api.pages(f"{at}/protected_branches"),
        environments=api.pages(f"{at}/protected_environments"),
        variables=variables,
        runners={tag: _runners(api, at, tag) for tag in RUNNER_TAGS},
        has_approver=has_approver,
    )


def _runners(api: Api, at: str, tag: str) -> Any:
    """The runners with this tag, in detail: the list says neither tags nor protection."""
    listed = api.pages(f"{at}/runners?tag_list={tag}")
    if isinstance(listed, Refused):
        return listed
    details = [api.get(f"/runners/{value(runner, 'id', int, 'a runner')}") for runner in listed]
    return next((each for each in details if isinstance(each, Refused)), details)


def branch(seen: Seen) -> Iterator[Finding]:
    """The default branch is protected, maintainers at most push to it, and nobody rewrites it."""
    name = value(seen.project, "default_branch", str, "the project")
    rules = items(seen.branches, "the protected branches", _ROLE)
    settings = "Settings > Repository > Protected branches"
    matching = [rule for rule in rules if _matches(value(rule, "name", str, "a protected branch"), name)]
    if not matching:
        yield Finding(f"branch {name}", f"it is not protected. {settings}: protect it, for maintainers")
    else:
        # Of several rules for one branch the most permissive counts.
        together = sorted(set().union(*map(_faults, matching)))
        yield Finding(
            f"branch {name} is protected", f"but {' and '.join(together)}. {settings}" if together else ""
        )
    for rule in rules:
        if rule not in matching and (faults := _faults(rule)):
            yield Finding(
                f"protected branch {rule['name']}",
                f"{' and '.join(sorted(faults))}, and each protected branch gets {KEY_VARIABLE} and protected runners. "
                f"{settings}: let maintainers alone push, or do not protect it",
            )


def _matches(pattern: str, name: str) -> bool:
    """Whether a rule is for this branch. GitLab's only wildcard is *."""
    return bool(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name))


def _faults(rule: dict) -> set[str]:
    """What a rule allows and should not."""
    what, faults = "a protected branch", set()
    for level in value(rule, "push_access_levels", list, what):
        if _is_named(level):
            faults.add("single users, groups or deploy keys may push")
        elif level.get("access_level") != 0 and not _at_least_maintainer(level):
            faults.add("developers may push")
    if value(rule, "allow_force_push", bool, what):
        faults.add("it may be rewritten (force push)")
    return faults


def _is_named(level: dict) -> bool:
    """Whether an access level is of one user, group, deploy key or custom role, whose own role is not told."""
    if not isinstance(level, dict):
        raise NoData("an access level is not an object that could be judged.")
    return any(level.get(name) for name in ("user_id", "group_id", "deploy_key_id", "member_role_id"))


def _at_least_maintainer(level: dict) -> bool:
    return value(level, "access_level", int, "an access level") >= _MAINTAINER


def environments(seen: Seen) -> Iterator[Finding]:
    """The environments are protected, and production asks for another person than the one who deploys."""
    if _plan_has_none(seen):
        yield none_offered("protected environments", "this GitLab plan has none", seen.has_approver)
        return
    listed = items(seen.environments, "the protected environments", _ROLE)
    found = {value(each, "name", str, "a protected environment"): each for each in listed}
    for name in ENVIRONMENTS:
        if name not in found:
            yield Finding(
                f"environment {name}",
                "it is not protected in the project, so whoever may push to any branch may deploy there. "
                "Settings > CI/CD > Protected environments",
            )
        elif name != APPROVING:
            yield Finding(f"environment {name} is protected")
        else:
            yield from _approvals(found[name], seen.project)


def _plan_has_none(seen: Seen) -> bool:
    """Whether this plan protects no environments at all.

    A refusal may also mean a token with too few rights: not one that may read the variables, which asks for the
    same role. Some versions answer with an empty list, and leave the setting about approvals out of the project.
    """
    if isinstance(seen.environments, Refused):
        return not isinstance(seen.variables, Refused)
    return seen.environments == [] and "allow_pipeline_trigger_approve_deployment" not in seen.project


def _approvals(environment: dict, project: dict) -> Iterator[Finding]:
    name, settings = f"environment {APPROVING}", "Settings > CI/CD > Protected environments"
    asked = _required_approvals(environment)
    levels = value(environment, "deploy_access_levels", list, name)
    if asked:
        yield Finding(f"{name} is protected, and asks for approval ({asked})")
        yield _self_approval(project)
    elif levels and all(_is_named(level) or _at_least_maintainer(level) for level in levels):
        yield Finding(f"{name} is protected: maintainers or named people alone deploy")
        yield Finding(
            "a second person's approval",
            f"{name} asks for none, so one of them may approve alone. {settings} > Approval rules adds it",
            optional=True,
        )
    else:
        yield Finding(
            name, f"every developer may deploy, and no approval is asked for. {settings} > Approval rules"
        )


def _required_approvals(environment: dict) -> int:
    """How many approvals are asked for: by the rules together, or by the older single number."""
    rules = environment.get("approval_rules") or []
    counts = [environment.get("required_approval_count") or 0]
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise NoData(f"the approval rules of {APPROVING} are not a list that could be judged.")
    counts.append(sum(value(rule, "required_approvals", int, "an approval rule") for rule in rules))
    if not all(isinstance(count, int) for count in counts):
        raise NoData(f"the number of approvals of {APPROVING} is not a number.")
    return max(counts)


def _self_approval(project: dict) -> Finding:
    what = "nobody approves a deployment of their own"
    allowed = project.get("allow_pipeline_trigger_approve_deployment")
    if allowed is None:
        return Finding(what, "this GitLab does not say whether it holds", optional=True)
    if allowed is False:
        return Finding(what)
    return Finding(
        what,
        "whoever starts the pipeline may. Settings > CI/CD > Protected environments > Approval options: "
        "take away 'Allow pipeline triggerer to approve deployment'",
    )


def signing_key(seen: Seen) -> Iterator[Finding]:
    """The signing key exists, for protected refs alone, and as a file."""
    entries = [
        each for each in items(seen.variables, "the variables", _ROLE) if each.get("key") == KEY_VARIABLE
    ]
    settings = "Settings > CI/CD > Variables"
    if not entries:
        yield Finding(
            KEY_VARIABLE,
            f"the project has no such variable, so CI has no key to sign with. {settings}: add it, of type File and "
            "protected (a group's variables are not looked at)",
        )
        return
    faults = []
    if not all(value(entry, "protected", bool, KEY_VARIABLE) for entry in entries):
        faults.append("it is not protected, so any branch's pipeline can read it")
    if any(value(entry, "variable_type", str, KEY_VARIABLE) != "file" for entry in entries):
        faults.append("it is not of type File, so a job that lists its environment prints it")
    if faults:
        yield Finding(KEY_VARIABLE, f"{'; '.join(faults)}. {settings}")
    else:
        yield Finding(f"{KEY_VARIABLE} is protected, and a file")
    scopes = {value(entry, "environment_scope", str, KEY_VARIABLE) for entry in entries}
    if "*" in scopes:
        yield Finding(
            f"{KEY_VARIABLE} in the jobs that sign alone",
            "it is for all jobs, and so for the one that runs Trivy, which nobody trusts. "
            f"{settings}: give it once for each of the environments {', '.join(SIGNING)}, and not for all (*)",
        )
    elif missing := [name for name in SIGNING if not any(_matches(scope, name) for scope in scopes)]:
        yield Finding(
            f"{KEY_VARIABLE} in all jobs that sign",
            f"it is not given for {', '.join(missing)}. {settings}: give it for these environments too",
        )
    else:
        yield Finding(f"{KEY_VARIABLE} is in the jobs that sign alone")


def approvers_key(seen: Seen) -> Iterator[Finding]:
    """An approver's key, where the project has one, is for the environment production of protected refs alone."""
    entries = [
        each for each in items(seen.variables, "the variables", _ROLE) if each.get("key") == APPROVAL_VARIABLE
    ]
    faults = set()
    for entry in entries:
        if not value(entry, "protected", bool, APPROVAL_VARIABLE):
            faults.add("it is not protected, so any branch's pipeline can read it")
        if value(entry, "variable_type", str, APPROVAL_VARIABLE) != "file":
            faults.add("it is not of type File, so a job that lists its environment prints it")
        if value(entry, "environment_scope", str, APPROVAL_VARIABLE) != APPROVING:
            faults.add(f"it is not for the environment {APPROVING} alone, so other jobs could approve")
    if faults:
        yield Finding(APPROVAL_VARIABLE, f"{'; '.join(sorted(faults))}. Settings > CI/CD > Variables")
    elif entries:
        yield Finding(f"{APPROVAL_VARIABLE} is protected, a file, and for {APPROVING} alone")


def runners(seen: Seen) -> Iterator[Finding]:
    """The runners that train and deploy take jobs of protected refs alone."""
    for tag in RUNNER_TAGS:
        what = f"runners with the tag {tag}"
        found = items(seen.runners[tag], what, _ROLE)
        tagged = [each for each in found if tag in value(each, "tag_list", list, "a runner")]
        open_to_all = [
            f"#{value(each, 'id', int, 'a runner')}"
            for each in tagged
            if value(each, "access_level", str, "a runner") != "ref_protected"
        ]
        if not tagged:
            yield Finding(what, "the project has none. Settings > CI/CD > Runners: make one, protected")
        elif open_to_all:
            yield Finding(
                what,
                f"{', '.join(open_to_all)} would run any branch's jobs. Settings > CI/CD > Runners: tick Protected",
            )
        else:
            yield Finding(f"{what} are protected ({len(tagged)})")


def merges(seen: Seen) -> Iterator[Finding]:
    """Whether a merge waits for its pipeline; good to have, as the gates run again on the branch itself."""
    yield Finding(
        "a merge waits for its pipeline to succeed",
        ""
        if seen.project.get("only_allow_merge_if_pipeline_succeeds") is True
        else "it does not. Settings > Merge requests > Pipelines must succeed",
        optional=True,
    )


CHECKS = {
    "the default branch": branch,
    "protected environments": environments,
    "the signing key": signing_key,
    "the approver's key": approvers_key,
    "the runners": runners,
    "merges": merges,
}
