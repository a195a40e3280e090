"""What the containers of a running stack owe, wherever it runs: inherited like tests.public."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from tests.harness import wait_for

if TYPE_CHECKING:
    from tests.harness import Stack

# Where the stack and its images keep files, less the secrets themselves and the databases' data.
SEARCHED = (
    "/var/lib/docker/overlay2",
    "/var/lib/docker/containers",
    "/var/lib/docker/image",
    "/var/log",
    "/var/tmp",
    "/tmp",
    "/etc",
    "/home",
    "/root",
)


def moment(text: str) -> str:
    """Docker's timestamps, comparable as text: fixed width, without trailing zeros lost."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"


# What copies the files of other users may read them, as root, and has no other right.
READERS = {"offsite-1": ["DAC_READ_SEARCH"]}


class Containers:
    """FS-2, FS-5, FS-6, FS-8, UT-6, UT-11, CS-5, CS-6 and BM-5 on live containers."""

    def test_every_service_runs_and_is_healthy(self, stack: Stack) -> None:
        """CS-5, CS-6."""
        services = stack.services()
        assert {"postgres", "redis-cache", "redis-queue", "nginx"} <= set(services)
        for name, items in services.items():
            for item in items:
                assert item["State"]["Health"]["Status"] == "healthy", name
                assert item["Config"]["Healthcheck"]["StartPeriod"] > 0, name

    def test_exactly_one_slot_serves(self, stack: Stack) -> None:
        """FS-1: the other colour stands empty until a change."""
        slots = {name for name in stack.services() if name.startswith("api-")}
        assert slots == {stack.api_slot()} < {"api-blue", "api-green"}

    def test_containers_are_hardened(self, stack: Stack) -> None:
        """FS-6: on the containers themselves, finished one-shots included."""
        found = stack.containers()
        assert len(found) >= 6
        for name, item in found.items():
            host: dict[str, Any] = item["HostConfig"]
            user = r"0:0" if name in READERS else r"[1-9]\d*:[1-9]\d*"
            assert re.fullmatch(user, item["Config"]["User"]), name
            assert host["CapDrop"] == ["ALL"], name
            added = [item.removeprefix("CAP_") for item in host["CapAdd"] or []]
            assert added == READERS.get(name, []), name
            assert host["ReadonlyRootfs"] is True, name
            assert "no-new-privileges:true" in host["SecurityOpt"], name
            assert host["Privileged"] is False, name
            assert host["Memory"] > 0, name
            assert host["NanoCpus"] > 0, name
            assert host["PidsLimit"] > 0, name
            assert item["Config"]["StopTimeout"] >= 10, name

    def test_processes_really_are_unprivileged(self, stack: Stack) -> None:
        """FS-6: what the kernel says of the first process of each container."""
        for name, items in stack.services().items():
            if f"{name}-1" in READERS:
                continue
            pid = items[0]["State"]["Pid"]
            status = stack.engine.run("cat", f"/proc/{pid}/status")
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert fields["Uid"].split()[0] != "0", name
            assert int(fields["CapEff"], 16) == 0, name
            assert fields["NoNewPrivs"] == "1", name

    def test_application_limits(self, stack: Stack) -> None:
        """UT-11: what the kernel enforces is what the inventory says."""
        for item in stack.services()[stack.api_slot()]:
            assert item["HostConfig"]["Memory"] == 512 << 20

    def test_start_order(self, stack: Stack) -> None:
        """FS-2: by the clock of the engine."""
        found = stack.containers()
        times = {
            item["Config"]["Labels"]["com.docker.compose.service"]: (
                moment(item["State"]["StartedAt"]),
                moment(item["State"]["FinishedAt"]),
            )
            for item in found.values()
        }
        slot = stack.api_slot()
        migrate = slot.replace("api-", "migrate-")
        assert times["postgres"][0] < times[migrate][0]
        assert times[migrate][1] < times[slot][0]
        assert times["redis-cache"][0] < times[slot][0]
        assert times["redis-queue"][0] < times[slot][0]
        assert times[slot][0] < times["nginx"][0]

    def test_migrations_ran_once_and_well(self, stack: Stack) -> None:
        """FS-2, UT-5."""
        name = stack.api_slot().replace("api-", "migrate-")
        found = [item for key, item in stack.containers().items() if key.startswith(name)]
        assert found
        for migrate in found:
            assert migrate["State"]["Status"] == "exited"
            assert migrate["State"]["ExitCode"] == 0

    def test_postgresql_is_tuned_and_checked(self, stack: Stack) -> None:
        """BM-5: to its memory limit; data checksums on, passwords by scram."""
        memory = stack.one("postgres")["HostConfig"]["Memory"] >> 20
        query = "SELECT name || '=' || setting || coalesce(unit, '') FROM pg_settings"
        settings = dict(line.split("=", 1) for line in self.psql(stack, query) if "=" in line)
        assert settings["shared_buffers"] == f"{memory // 4 * 128}8kB"
        assert settings["effective_cache_size"] == f"{memory * 3 // 4 * 128}8kB"
        assert settings["data_checksums"] == "on"
        assert settings["password_encryption"] == "scram-sha-256"
        assert int(settings["work_mem"].removesuffix("kB")) >= 1024
        assert int(settings["max_connections"]) >= 50

    def test_application_role_is_least_privileged(self, stack: Stack) -> None:
        """FS-8: what serves requests can neither change the schema nor become a superuser."""
        query = (
            "SELECT rolname, rolsuper, rolcreaterole, rolcanlogin FROM pg_roles"
            " WHERE rolname LIKE 'app%'"
        )
        members = {"app_owner": "owner", "app": "app", "app_query": "query"}
        logins = {stack.login(f"postgres_{of}_password", role)[0] for role, of in members.items()}
        assert set(self.psql(stack, query)) == {
            *(f"{role}|f|f|f" for role in members),
            *(f"{login}|f|f|t" for login in logins),
        }
        owned = (
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            " AND tableowner <> 'app_owner'"
        )
        assert self.psql(stack, owned) == ["0"]
        granted = (
            "SELECT table_name, privilege_type FROM information_schema.role_table_grants"
            " WHERE grantee = 'app_query' AND table_schema = 'public'"
        )
        tables = ("usage_minutes", "usage_hours", "usage_days", "usage_changes")
        assert set(self.psql(stack, granted)) == {f"{table}|SELECT" for table in tables}

    def test_redis_keeps_what_is_queued(self, stack: Stack) -> None:
        """UT-6, FS-5: asked of the servers, as the application; its password is not shown."""
        policies = {"redis-cache": "allkeys-lru", "redis-queue": "noeviction"}
        for service, policy in policies.items():
            cli = ("sh", "/etc/compose-stack/current/boot/cli.sh", service.removeprefix("redis-"))
            said = stack.execute(service, *cli, "INFO", "everything")
            values = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
            memory = stack.one(service)["HostConfig"]["Memory"] >> 20
            assert values["maxmemory_policy"] == policy
            assert int(values["maxmemory"]) == memory * 6 // 10 << 20, service
            assert values["aof_enabled"] == "1", service
            listed = stack.execute(service, "sh", "-c", "ls /data/appendonlydir")
            assert "appendonly.aof" in listed, service
            pong = stack.execute(
                service,
                "redis-cli",
                "--user",
                "health",
                "--pass",
                "health",
                "--no-auth-warning",
                "ping",
            )
            assert pong.strip() == "PONG"

    def test_metrics_are_for_the_monitoring_network(self, stack: Stack) -> None:
        """CS-3: by their name there, and not by the API's address among the databases."""
        slot = stack.api_slot()
        answer = self.fetch(stack, "monitoring", f"http://{slot}-metrics:9100/metrics")
        assert "# TYPE http_request_duration_seconds histogram" in answer
        backend = f"{stack.project}_backend"
        for item in stack.services()[slot]:
            address = item["NetworkSettings"]["Networks"][backend]["IPAddress"]
            answer = self.fetch(stack, "backend", f"http://{address}:9100/metrics")
            assert "Connection refused" in answer

    @staticmethod
    def fetch(stack: Stack, network: str, url: str) -> str:
        """What a neighbour in a network gets, or why it gets nothing."""
        return stack.engine.run(
            "docker", "run", "--rm", f"--network={stack.project}_{network}", "--read-only",
            "--cap-drop=ALL", "--entrypoint=wget", stack.one("nginx")["Image"],
            "-T", "5", "-q", "-O", "-", url,
            check=False,
        )  # fmt: skip

    def test_restart_policy_survives_a_reboot(self, stack: Stack) -> None:
        """CS-1: what runs comes back with the machine, one-shots do not."""
        for name, items in stack.services().items():
            for item in items:
                assert item["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped", name

    def test_volumes_are_where_the_inventory_says(self, stack: Stack) -> None:
        """BM-15, CS-5."""
        for service, target in (
            ("postgres", "/var/lib/postgresql/data"),
            ("redis-cache", "/data"),
            ("redis-queue", "/data"),
            ("rabbitmq", "/var/lib/rabbitmq"),
        ):
            (mount,) = (
                item for item in stack.one(service)["Mounts"] if item["Destination"] == target
            )
            assert mount["Type"] == self.data_mount, service
            assert mount["RW"] is True

    data_mount = "volume"

    def test_secrets_are_files_that_only_root_reaches(self, stack: Stack) -> None:
        """FS-8."""
        listed = stack.engine.run("stat", "-c", "%a %U", f"{stack.directory}/secrets").strip()
        assert listed == "700 root"
        assert len(self.secrets(stack)) >= 4

    def test_no_secret_shows(self, stack: Stack) -> None:
        """FS-8: not in inspect, history, environments, command lines, YAML, layers or logs."""
        secrets = self.secrets(stack)
        patterns = "\n".join(
            item
            for value in secrets.values()
            for item in (value, base64.b64encode(value.encode()).decode().rstrip("="))
        )
        images = {item["Image"] for item in stack.containers().values()}
        shown = stack.engine.run("docker", "image", "inspect", *images)
        for image in images:
            shown += stack.engine.run("docker", "history", "--no-trunc", image)
        for item in stack.containers().values():
            shown += stack.engine.run("docker", "inspect", item["Id"])
            shown += stack.engine.run("docker", "logs", item["Id"])
        shown += stack.engine.run(
            "sh",
            "-c",
            "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'",
            check=False,
        )
        for name, value in secrets.items():
            assert value not in shown, name
        script = (
            f'printf "%s\\n" "$1" > /dev/shm/patterns && {{ grep -rlaF -f /dev/shm/patterns '
            f"--exclude-dir=secrets --exclude-dir=.cache {stack.directory} {self.searched()} "
            "2>/dev/null; rm /dev/shm/patterns; }; true"
        )
        assert stack.engine.run("sh", "-c", script, "sh", patterns, seconds=120).split() == []

    def searched(self) -> str:
        return " ".join(SEARCHED)

    @staticmethod
    def secrets(stack: Stack) -> dict[str, str]:
        names = stack.engine.run("ls", f"{stack.directory}/secrets").split()
        return {
            name: stack.engine.run("cat", f"{stack.directory}/secrets/{name}") for name in names
        }

    @staticmethod
    def psql(stack: Stack, query: str) -> list[str]:
        output = wait_for(
            "psql",
            lambda: stack.execute(
                "postgres", "psql", "--host=/run/postgresql", "--username=postgres", "-XAtq",
                "--dbname=app", "--command", query,
            ),
            10,
        )  # fmt: skip
        return output.splitlines()
