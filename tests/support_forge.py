"""A GitLab and a GitHub for tests, on the loopback: they answer from a table, a few items a page, over real HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

KEY = "TIDEGATE_SIGNING_KEY"
PEM = "-----BEGIN PRIVATE KEY----- a key that must not be seen"
PROJECT = "/api/v4/projects/42"
REPOSITORY = "/repos/owner/name"
ENVIRONMENTS = ("pipeline", "staging", "production", "production-approval")
MAINTAINERS = {"access_level": 40, "user_id": None, "group_id": None}
PAGE_SIZE = 2


def gitlab_routes():
    return {
        PROJECT: {
            "id": 42,
            "default_branch": "main",
            "only_allow_merge_if_pipeline_succeeds": True,
            "allow_pipeline_trigger_approve_deployment": False,
        },
        f"{PROJECT}/protected_branches": [
            *({"name": f"v{n}", "push_access_levels": [], "allow_force_push": False} for n in range(4)),
            {"name": "main", "push_access_levels": [MAINTAINERS], "allow_force_push": False},
        ],
        f"{PROJECT}/protected_environments": [
            *({"name": f"review/{n}", "deploy_access_levels": []} for n in range(3)),
            {"name": "staging", "deploy_access_levels": [MAINTAINERS]},
            {
                "name": "production",
                "deploy_access_levels": [MAINTAINERS],
                "approval_rules": [{"required_approvals": 1}],
            },
        ],
        f"{PROJECT}/variables": [
            *(
                {"key": f"V{n}", "value": "x", "protected": False, "variable_type": "env_var"}
                for n in range(5)
            ),
            *(
                {
                    "key": KEY,
                    "value": PEM,
                    "protected": True,
                    "variable_type": "file",
                    "environment_scope": scope,
                }
                for scope in ("pipeline", "staging", "production")
            ),
        ],
        f"{PROJECT}/runners?tag_list=gpu": [{"id": 6}],
        f"{PROJECT}/runners?tag_list=deploy": [{"id": 7}, {"id": 8}, {"id": 9}],
        **{
            f"/api/v4/runners/{n}": {
                "id": n,
                "tag_list": ["gpu" if n == 6 else "deploy"],
                "access_level": "ref_protected",
            }
            for n in (6, 7, 8, 9)
        },
    }


def github_routes():
    reviewers = {"type": "required_reviewers", "prevent_self_review": True, "reviewers": [{"type": "User"}]}
    return {
        REPOSITORY: {"default_branch": "main", "private": False, "owner": {"type": "Organization"}},
        f"{REPOSITORY}/branches/main": {"name": "main", "protected": True},
        f"{REPOSITORY}/branches/main/protection": {
            "allow_force_pushes": {"enabled": False},
            "required_status_checks": {"contexts": ["complete"]},
            "required_pull_request_reviews": {"required_approving_review_count": 1},
        },
        f"{REPOSITORY}/rules/branches/main": [],
        f"{REPOSITORY}/environments": {
            "environments": [
                {
                    "name": name,
                    "deployment_branch_policy": {"protected_branches": False, "custom_branch_policies": True},
                    "protection_rules": [reviewers] if name == "production-approval" else [],
                    "can_admins_bypass": False,
                }
                for name in ENVIRONMENTS
            ]
        },
        **{
            f"{REPOSITORY}/environments/{name}/deployment-branch-policies": {
                "branch_policies": [{"name": "main"}]
            }
            for name in ENVIRONMENTS
        },
        **{
            f"{REPOSITORY}/environments/{name}/secrets": {
                "secrets": [{"name": "A"}, {"name": "B"}, {"name": "C"}, {"name": KEY}]
            }
            for name in ENVIRONMENTS
        },
        f"{REPOSITORY}/actions/secrets": {"secrets": [{"name": "A"}, {"name": "B"}, {"name": "C"}]},
        f"{REPOSITORY}/actions/organization-secrets": {"secrets": []},
    }


class Forge(ThreadingHTTPServer):
    """Answers from `routes`, if the header that holds the token is right.

    `first` holds answers (status, headers, body) that come before a route's own, one a request; "*" is any route.
    """

    daemon_threads = True

    def __init__(self, routes, token_header):
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes, self.token_header, self.first, self.asked = routes, token_header, {}, []
        self.base = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def reply(self, path, headers):
        """Status, headers and body for a request."""
        self.asked.append(path)
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        tags = f"?tag_list={query['tag_list']}" if "tag_list" in query else ""
        route = parts.path + tags
        for queue in (self.first.get(route), self.first.get("*")):
            if queue:
                return queue.pop(0)
        name, value = self.token_header
        if headers.get(name) != value:
            return 401, {}, b'{"message": "401 Unauthorized"}'
        if route not in self.routes:
            return 404, {}, b'{"message": "404 Not Found"}'
        return self.page(parts.path, query, self.routes[route])

    def page(self, path, query, document):
        """The document; or, of a list or of an object that holds but a list, one page and the link to the next."""
        wrapped = isinstance(document, dict) and len(document) == 1
        if not wrapped and isinstance(document, dict):
            return 200, {}, json.dumps(document).encode()
        ((key, items),) = document.items() if wrapped else (("", document),)
        number = int(query.get("page", 1))
        page, headers = items[(number - 1) * PAGE_SIZE : number * PAGE_SIZE], {}
        if number * PAGE_SIZE < len(items):
            there = urlencode({**query, "page": number + 1})
            headers["Link"] = f'<{self.base}{path}>; rel="first", <{self.base}{path}?{there}>; rel="next"'
        return 200, headers, json.dumps({"total_count": len(items), key: page} if wrapped else page).encode()


class Handler(BaseHTTPRequestHandler):
    """A body may be a function, which then writes it to the connection by itself."""

    def do_GET(self):
        status, headers, body = self.server.reply(self.path, self.headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not callable(body) and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if callable(body):
            body(self.wfile)
        else:
            self.wfile.write(body)

    def log_message(self, *args):
        """Nothing: the tests look at what was asked."""
