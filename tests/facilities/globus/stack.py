"""Globus on this machine: broker, Auth, the Compute service and real agents together, on free ports.

The Globus Compute packages know only one address of a service on this machine, ``http://localhost:5000``. So that
stacks can run side by side, ``HTTP_PROXY`` sends requests for it to the stack's port, and ``NO_PROXY`` excludes
127.0.0.1 and ::1: other loopback traffic by number is not affected, and any other host in plain HTTP is refused by the
stack with a clear error (502, ``NotAProxy``). HTTPS, sockets and AMQP are not affected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from facilities.daemons import wait_until
from facilities.globus.agents import Agent, missing_agent_programs
from facilities.globus.amqp import RabbitQueues
from facilities.globus.auth import Auth, ServiceAccount
from facilities.globus.compute import Compute, ComputeRules
from facilities.globus.http import HttpService
from facilities.globus.rabbit import RabbitBroker, missing_broker_programs, rabbit_broker
from facilities.globus.templates import LOCAL_TEMPLATE

__all__ = ["Stack", "client_variables", "globus_stack", "missing_programs"]


def missing_programs() -> list[str]:
    """Return the programs that must be installed before a stack can run."""
    return missing_broker_programs() + missing_agent_programs()


def client_variables(service: HttpService, account: ServiceAccount) -> dict[str, str]:
    """Return the variables of a client of the services on a port, as a service account."""
    direct = "127.0.0.1,::1"
    return {
        "GLOBUS_SDK_ENVIRONMENT": "local",
        "GLOBUS_SDK_SERVICE_URL_AUTH": f"{service.url}/",
        "GLOBUS_SDK_SERVICE_URL_TRANSFER": f"{service.url}/",
        "GLOBUS_COMPUTE_CLIENT_ID": account.client_id,
        "GLOBUS_COMPUTE_CLIENT_SECRET": account.secret,
        "HTTP_PROXY": service.url,
        "http_proxy": service.url,
        "NO_PROXY": direct,
        "no_proxy": direct,
    }


class Stack:
    """A running stack; agents are added one by one.

    Attributes:
        broker: RabbitMQ node, possibly shared with other stacks.
        service: HTTP service with all routes, faults and the record of calls.
        auth, compute: the services on it.
        account: service account of driver and agents.
        agents: agents by their names.
    """

    def __init__(self, root: Path, broker: RabbitBroker, host: str = "127.0.0.1") -> None:
        self.root, self.broker, self.service = root, broker, HttpService(host=host)
        self.auth, self.agents = Auth(self.service), dict[str, Agent]()
        self.account = self.auth.add_service_account()
        root.mkdir(parents=True, exist_ok=True)
        self.compute = self._new_compute()

    def environment(self) -> dict[str, str]:
        """Return the variables that a driver process needs in addition to its environment."""
        return client_variables(self.service, self.account) | {"GLOBUS_COMPUTE_USER_DIR": str(self.root / "driver")}

    def start(self) -> None:
        self.compute.start()
        self.service.start()

    def stop(self) -> None:
        for agent in self.agents.values():
            agent.close()
        self.agents.clear()
        self.service.stop()
        self.compute.close()

    def add_agent(
        self,
        name: str,
        template: str = LOCAL_TEMPLATE,
        variables: Mapping[str, str] | None = None,
        core: str = "",
    ) -> Agent:
        """Start an agent with a template for its children; return it when it is online.

        Args:
            name: name of the endpoint; an existing one is replaced.
            template: text of ``user_config_template.yaml.j2``.
            variables: additional environment, which its workers inherit.
            core: further lines of its ``config.yaml``.
        """
        if name in self.agents:
            self.agents.pop(name).close()
        known = client_variables(self.service, self.account)
        del known["GLOBUS_SDK_ENVIRONMENT"]  # its config.yaml sets this
        agent = Agent(self.root / "agents" / name, name, template, {**known, **(variables or {})}, core)
        self.agents[name] = agent
        agent.start()
        self.wait_online(agent)
        return agent

    def wait_online(self, agent: Agent, limit_s: float = 90) -> None:
        """Wait until the service has received a heartbeat of a running agent."""

        def online() -> bool:
            return self.is_online(agent)

        wait_until(f"agent {agent.name}", online, agent.root / "log", limit_s)

    def is_online(self, agent: Agent) -> bool:
        """Return True if its last heartbeat is recent and after its start; raise FacilityError if it has ended."""
        agent.check()
        endpoint_id, endpoints = agent.endpoint_id, self.compute.endpoints
        if endpoint_id not in endpoints.known or not endpoints.is_online(endpoint_id):
            return False
        return endpoints.known[endpoint_id]["heartbeat_at"] > agent.started_at

    def reset(self) -> None:
        """Remove faults and recorded calls and reset the limits."""
        self.service.clear()
        self.compute.rules = ComputeRules()

    def restart_service(self) -> None:
        """Restart the web service: it loses everything that is not in its file, and keeps its port."""
        self.service.stop()
        self.compute.close()
        self.compute = self._new_compute()
        self.start()

    def _new_compute(self) -> Compute:
        queues = RabbitQueues(self.broker.url, prefix=f"{self.root.name}.")
        return Compute(self.service, self.auth, queues, self.root / "service.sqlite")


@contextmanager
def globus_stack(root: Path, broker: RabbitBroker | None = None, host: str = "127.0.0.1") -> Iterator[Stack]:
    """Yield a stack in a folder, whose name separates it from others on one broker; default a broker of its own."""
    with ExitStack() as exits:
        stack = Stack(root, broker or exits.enter_context(rabbit_broker(root / "mq")), host)
        exits.callback(stack.stop)
        stack.start()
        yield stack
