"""A headless Chromium without scripts, which tells what it was answered and complained about."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver.remote.webelement import WebElement

    from tests.harness import Site

PATIENCE = 60
"""Seconds to wait for a page: far more than it takes, also where the machine is busy."""
REQUESTS_A_SECOND = 10
"""What nginx lets a client ask for in the long run; other tests may have used up its burst."""
PHONE = (360, 740)
DESKTOP = (1280, 900)

OPTIONS = (
    "--headless=new",
    # Chromium has no sandbox for root, and containers have little shared memory.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # It is to ask for nothing but pages of the site.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
    # The tests of TLS look at the certificate; its authority is this stack's own.
    "--ignore-certificate-errors",
    # The driver reaches it, though it has a network of its own.
    "--remote-debugging-pipe",
)
NO_SCRIPTS = 2
CLONE_NEWNET = 0x40000000


class Browser:
    """Goes from page to page as an operator does."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self._driver = driver
        self._base = base
        self._next = time.monotonic()
        self.answers: list[tuple[str, int]] = []
        """Paths of this site that were asked for, and the status of each."""
        self.complaints: list[str] = []
        """What Chromium had to say of the pages, violations of their policies above all."""

    def open(self, path: str) -> None:
        """Load a page of the site."""
        self.visit(f"{self._base}{path}")

    def visit(self, url: str) -> None:
        """Load any page."""
        self._keep_to_the_rate()
        self._driver.get(url)
        self.listen()

    def forget(self) -> None:
        """Be somebody who has not been here."""
        self._driver.execute_cdp_cmd("Network.clearBrowserCookies", {})

    def click(self, element: WebElement) -> None:
        """Click what leads to another page, and wait for that one."""
        self._keep_to_the_rate()
        before = self._driver.find_element(By.TAG_NAME, "html")
        element.click()

        def another(driver: webdriver.Chrome) -> bool:
            # While it is being exchanged there may be none.
            now = driver.find_elements(By.TAG_NAME, "html")
            state = driver.execute_script("return document.readyState")
            return bool(now) and now[0] != before and state == "complete"

        self.wait(another)
        self.listen()

    def fill(self, action: str, **values: str) -> WebElement:
        """Fill in the form that goes to this path."""
        form = self.find(f'form[action="{action}"]')
        for name, value in values.items():
            field = form.find_element(By.NAME, name)
            if field.tag_name == "select":
                field.find_element(By.XPATH, f"option[. = '{value}']").click()
            elif field.get_attribute("type") == "date":
                # Which keys are the day and which the month depends on the language.
                self.run("arguments[0].value = arguments[1]", field, value)
            else:
                field.clear()
                field.send_keys(value)
        return form

    def send(self, action: str, **values: str) -> None:
        """Fill in the form that goes to this path, and send it."""
        form = self.fill(action, **values)
        self.click(form.find_element(By.TAG_NAME, "button"))

    def find(self, selector: str) -> WebElement:
        found: WebElement = self.wait(lambda driver: driver.find_element(By.CSS_SELECTOR, selector))
        return found

    def links(self, text: str) -> list[WebElement]:
        """Links that read so."""
        return self._driver.find_elements(By.LINK_TEXT, text)

    def rows(self, heading: str = "") -> list[list[str]]:
        """Cells of a table's body; of the one below a heading where a page has several."""
        table = f"//h2[. = '{heading}']/following::table[1]" if heading else "//table"
        return [
            [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
            for row in self._driver.find_elements(By.XPATH, f"{table}/tbody/tr")
        ]

    def wait(self, probe: Callable[[webdriver.Chrome], Any]) -> Any:
        """The first true value of a probe."""
        return WebDriverWait(self._driver, PATIENCE, 0.1).until(probe)

    def run(self, script: str, *arguments: object) -> Any:
        """Ask the page from without; what it brings itself does not run."""
        return self._driver.execute_script(script, *arguments)

    def resize(self, size: tuple[int, int]) -> None:
        """Have pages as large as on a screen of this size."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    @property
    def path(self) -> str:
        return self._driver.current_url.removeprefix(self._base)

    @property
    def text(self) -> str:
        """What can be seen of the page."""
        return str(self.find("body").text)

    @property
    def title(self) -> str:
        return str(self.find("h1").text)

    def cookie(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._driver.get_cookie(name)
        return found

    def listen(self) -> list[tuple[str, int]]:
        """Take down what has been answered and complained about since; all answers."""
        for entry in self._log("browser"):
            # Of what was answered with an error, `answers` tells more; chrome: is its first page.
            if entry["source"] != "network" and not entry["message"].startswith("chrome:"):
                self.complaints.append(entry["message"])
        asked = 0
        for entry in self._log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                asked += event["params"]["request"]["url"].startswith(self._base)
            elif event["method"] == "Network.responseReceived":
                answer = event["params"]["response"]
                if answer["url"].startswith(self._base):
                    path = answer["url"].removeprefix(self._base)
                    self.answers.append((path, answer["status"]))
        self._next = max(self._next, time.monotonic()) + asked / REQUESTS_A_SECOND
        return self.answers

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._driver.get_log(kind)  # type: ignore[no-untyped-call]
        return found

    def _keep_to_the_rate(self) -> None:
        """Be no quicker than nginx allows, as no person is."""
        time.sleep(max(0.0, self._next - time.monotonic()))


@contextlib.contextmanager
def browser(site: Site) -> Iterator[Browser]:
    """A Chromium of its own, that knows nothing of what others have seen."""
    chromedriver = shutil.which("chromedriver")
    assert chromedriver, "there is no chromedriver: run scripts/bootstrap browser"
    with (
        tempfile.TemporaryDirectory(prefix="chromium-") as directory,
        _network_with(site) as network,
    ):
        binary = Path(directory, "chromium")
        binary.write_text(f'#!/bin/sh\nexec nsenter --net={network} chromium "$@"\n')
        binary.chmod(0o755)
        options = webdriver.ChromeOptions()
        options.binary_location = str(binary)
        for option in (*OPTIONS, f"--user-data-dir={directory}/profile"):
            options.add_argument(option)
        options.add_experimental_option(
            "prefs", {"profile.managed_default_content_settings.javascript": NO_SCRIPTS}
        )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
        try:
            driver.set_page_load_timeout(PATIENCE)
            yield Browser(driver, f"https://{site.name}:{site.https_port}")
        finally:
            driver.quit()


@contextlib.contextmanager
def _network_with(site: Site) -> Iterator[str]:
    """A network namespace that has nothing but the site, on its own loopback; a path to it.

    Chromium drops all requests (ERR_NETWORK_CHANGED) when an address of its machine changes, which
    happens whenever some container starts or stops. Here none does.
    """
    # It is the thread that moves there, and the thread ends.
    with concurrent.futures.ThreadPoolExecutor(1) as elsewhere:
        listener, namespace = elsewhere.submit(_listen_elsewhere, site.https_port).result()
    forwarder = threading.Thread(target=_forward, args=(listener, site), daemon=True)
    forwarder.start()
    try:
        yield f"/proc/{os.getpid()}/fd/{namespace}"
    finally:
        # Wakes the one that accepts.
        listener.shutdown(socket.SHUT_RDWR)
        forwarder.join()
        listener.close()
        os.close(namespace)


def _listen_elsewhere(port: int) -> tuple[socket.socket, int]:
    """A socket that listens in a new network namespace, and a descriptor of that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    return socket.create_server(("127.0.0.1", port)), namespace


def _forward(listener: socket.socket, site: Site) -> None:
    """Connect whoever comes with the site."""
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = socket.create_connection((site.address, site.https_port), timeout=PATIENCE)
        except OSError:
            near.close()
            continue
        far.settimeout(None)
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
