"""What Tidegate's gates rely on at GitHub: looked at (slow, may fail), then judged (pure).

Fields: https://docs.github.com/rest/deployments/environments, …/rest/branches/branch-protection, …/rest/repos/rules
and …/rest/actions/secrets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipeline.doctor import Finding
from pipeline.errors import NoData
from pipeline.keys import KEY_VARIABLE
from pipeline.protection import items, none_offered, value
from pipeline.rest import Api, Refused

ENVIRONMENTS = ("pipeline", "staging", "production", "production-approval")  # as in .github/workflows/
APPROVING = "production-approval"
_READS = "A fine-grained token needs read access to Actions, Administration, Environments and Secrets."
_SETTINGS = "Settings > Environments"


@dataclass(frozen=True)
class Seen:
    """GitHub's answers, each what the API gave or Refused; `classic` is the older kind of branch protection.

    `policies` and `secrets` are by environment. `organization_secrets` is empty where no organization owns it.
    """

    repository: dict
    branch: Any
    rules: Any
    classic: Any
    environments: Any
    policies: dict[str, Any]
    secrets: dict[str, Any]
    repository_secrets: Any
    organization_secrets: Any
    has_approver: bool


def look(api: Api, project: str, has_approver: bool) -> Seen:
    """Asks GitHub about a repository, OWNER/NAME. Raises NoData if there is no answer to judge."""
    at = f"/repos/{project}"
    repository = api.get(at)
    if isinstance(repository, Refused):
        raise NoData(f"{api.host} does not show {project} to this token ({repository}). {_READS}")
    if not isinstance(repository, dict):
        raise NoData(f"{api.host} answered about the repository with something that is not an object.")
    branch = quote(value(repository, "default_branch", str, "the repository"), safe="")
    environments = api.pages(f"{at}/environments", "environments")
    found = {
        each["name"]: each
        for each in ([] if isinstance(environments, Refused) else environments)
        if each.get("name") in ENVIRONMENTS
    }
    return Seen(
        repository=repository,
        branch=api.get(f"{at}/branches/{branch}"),
        rules=api.pages(f"{at}/rules/branches/{branch}"),
        classic=api.get(f"{at}/branches/{branch}/protection"),
        environments=environments,
        policies={
            name: api.pages(f"{at}/environments/{name}/deployment-branch-policies", "branch_policies")
            for name, each in found.items()
            if _policy(each).get("custom_branch_policies")
        },
        secrets={name: api.pages(f"{at}/environments/{name}/secrets", "secrets") for name in found},
        repository_secrets=api.pages(f"{at}/actions/secrets", "secrets"),
        organization_secrets=api.pages(f"{at}/actions/organization-secrets", "secrets")
        if _owned_by_organization(repository)
        else [],
        has_approver=has_approver,
    )


def _owned_by_organization(repository: dict) -> bool:
    owner = value(repository, "owner", dict, "the repository")
    return value(owner, "type", str, "the repository's owner") == "Organization"


def _policy(environment: dict) -> dict:
    """Which branches may use an environment; empty for any."""
    policy = environment.get("deployment_branch_policy")
    return policy if isinstance(policy, dict) else {}


def branch(seen: Seen) -> Iterator[Finding]:
    """The default branch is protected, by a ruleset or by the older branch protection, and nobody rewrites it."""
    name = value(seen.repository, "default_branch", str, "the repository")
    what, settings = f"branch {name} is protected", "Settings > Rules > Rulesets"
    if _beyond_plan(seen.rules):
        yield Finding(
            f"branch {name}",
            "this plan protects no branches of private repositories, so GitHub tells every job that its ref is not "
            "protected. Upgrade it, or use another platform",
        )
        return
    rules = {value(rule, "type", str, "a rule") for rule in items(seen.rules, "the branch's rules", _READS)}
    if isinstance(seen.branch, Refused) or not isinstance(seen.branch, dict):
        raise NoData(f"the branch {name} may not be looked at with this token. {_READS}")
    if not rules and not value(seen.branch, "protected", bool, f"the branch {name}"):
        yield Finding(f"branch {name}", f"it is not protected. {settings}: protect it")
        return
    classic = _classic(seen.classic, needed="non_fast_forward" not in rules)
    rewritable = "non_fast_forward" not in rules and (
        classic is None or value(_part(classic, "allow_force_pushes"), "enabled", bool, "force pushes")
    )
    yield Finding(what, f"but it may be rewritten. {settings}: Block force pushes" if rewritable else "")
    asked = {*rules, *(part for part, set_ in (classic or {}).items() if set_)}
    if not asked & {"pull_request", "required_pull_request_reviews", "update", "restrictions"}:
        yield Finding(
            f"changes reach {name} by pull requests alone",
            f"whoever may write may push to it. {settings}: Require a pull request",
            optional=True,
        )
    if "required_status_checks" not in asked:
        yield Finding(
            "a merge waits for its checks to pass",
            f"it does not. {settings}: Require status checks to pass (complete)",
            optional=True,
        )


def _beyond_plan(answer: Any) -> bool:
    """Whether GitHub refused because the plan lacks this for private repositories."""
    return isinstance(answer, Refused) and answer.said.startswith("Upgrade to")


def _classic(answer: Any, needed: bool) -> dict | None:
    """The older branch protection; None where there is none. Raises NoData if it is needed and not to be seen."""
    if isinstance(answer, dict):
        return answer
    if isinstance(answer, Refused) and (answer.said.startswith("Branch not protected") or not needed):
        return None
    raise NoData(f"the branch's protection may not be looked at with this token ({answer}). {_READS}")


def _part(document: dict, name: str) -> dict:
    return value(document, name, dict, "the branch's protection")


def environments(seen: Seen) -> Iterator[Finding]:
    """Each environment of the workflows exists, and is for protected branches alone."""
    found = _by_name(seen)
    for name in ENVIRONMENTS:
        what = f"environment {name}"
        if name not in found:
            yield Finding(what, f"it does not exist, so nothing guards the jobs that name it. {_SETTINGS}")
            continue
        fault = _open_to(found[name], seen)
        if fault:
            yield Finding(what, f"{fault}. {_SETTINGS} > {name} > Deployment branches: the default one alone")
        else:
            yield Finding(f"{what} is for protected branches alone")


def _by_name(seen: Seen) -> dict[str, dict]:
    listed = items(seen.environments, "the environments", _READS)
    return {value(each, "name", str, "an environment"): each for each in listed}


def _open_to(environment: dict, seen: Seen) -> str:
    """Which branches may use an environment that should not; nothing if all is well."""
    name, policy = environment["name"], _policy(environment)
    if policy.get("protected_branches") is True:
        # GitHub counts only what the older protection protects here; where that protects nothing, every branch may.
        if _classic(seen.classic, needed=True) is None:
            return "it counts no rulesets as protection, so every branch may use it"
        return ""
    if policy.get("custom_branch_policies") is not True:
        return "every branch may use it, and read its secrets"
    rules = items(seen.policies[name], f"the branches of environment {name}", _READS)
    allowed = {(rule.get("type", "branch"), value(rule, "name", str, "a branch policy")) for rule in rules}
    others = sorted(
        f"{kind} {ref}" for kind, ref in allowed - {("branch", seen.repository["default_branch"])}
    )
    return f"{', '.join(others)} may use it too" if others else ""


def approval(seen: Seen) -> Iterator[Finding]:
    """The approving environment waits for a reviewer, who is not the one who started the run."""
    what = f"environment {APPROVING} waits for a reviewer"
    environment = _by_name(seen).get(APPROVING)
    if environment is None and not _may_lack_reviewers(seen):
        return  # said already: it does not exist
    rules = value(environment, "protection_rules", list, APPROVING) if environment else []
    if not all(isinstance(rule, dict) for rule in rules):
        raise NoData(f"the rules of environment {APPROVING} are not a list that could be judged.")
    reviews = [rule for rule in rules if rule.get("type") == "required_reviewers" and rule.get("reviewers")]
    where = f"{_SETTINGS} > {APPROVING}"
    if not reviews and _may_lack_reviewers(seen):
        yield none_offered(
            what, "none is set, and many plans offer none for a private repository", seen.has_approver
        )
    elif not reviews:
        yield Finding(what, f"it asks for nobody. {where} > Required reviewers")
    else:
        yield Finding(f"{what} ({sum(len(rule['reviewers']) for rule in reviews)} may)")
        alone = not all(rule.get("prevent_self_review") is True for rule in reviews)
        yield Finding(
            "nobody approves a run of their own",
            f"whoever starts it may. {where} > Prevent self-review" if alone else "",
        )
        if (environment or {}).get("can_admins_bypass") is not False:
            yield Finding(
                "administrators wait too",
                f"they may bypass the reviewers. {where}: Allow administrators to bypass",
                optional=True,
            )


def _may_lack_reviewers(seen: Seen) -> bool:
    """Whether the plan may offer no reviewers: for private repositories they need GitHub Enterprise."""
    return value(seen.repository, "private", bool, "the repository")


def signing_key(seen: Seen) -> Iterator[Finding]:
    """Each environment holds the signing key, and no wider place does."""
    found = _by_name(seen)
    without = [
        name
        for name in ENVIRONMENTS
        if name in found and not _holds_key(seen.secrets[name], f"the secrets of environment {name}")
    ]
    if without:
        yield Finding(
            f"{KEY_VARIABLE} in each environment",
            f"{', '.join(without)} lacks it, and its jobs cannot sign. {_SETTINGS} > Environment secrets",
        )
    elif found.keys() >= set(ENVIRONMENTS):
        yield Finding(f"{KEY_VARIABLE} is a secret of each environment")
    wide = [
        owner
        for owner, answer in (
            ("repository", seen.repository_secrets),
            ("organization", seen.organization_secrets),
        )
        if _holds_key(answer, f"the secrets of the {owner}")
    ]
    fault = (
        f"it is the {' and '.join(wide)}'s too, so any branch's workflow can read it. Delete it there, and make a new "
        "key: this one may be known"
    )
    yield Finding(f"{KEY_VARIABLE} is a secret of environments alone", fault if wide else "")


def _holds_key(answer: Any, what: str) -> bool:
    return any(
        value(secret, "name", str, "a secret") == KEY_VARIABLE for secret in items(answer, what, _READS)
    )


CHECKS = {
    "the default branch": branch,
    "the environments": environments,
    "the approval": approval,
    "the signing key": signing_key,
}
