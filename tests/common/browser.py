#!/usr/bin/env python3
"""Opens a page in Chromium, waits, and prints the page's text, what it logged, and its width.

usage: browser.py URL SECONDS [--width N] [--height N] [--dark] [--save FILE.png]

It speaks the DevTools protocol over a pipe, since a headless browser's own options take the picture once the page is loaded,
when one that is filled by and by has nothing to show yet.
"""

import argparse
import base64
import json
import os
import subprocess
import tempfile
import time


class Browser:
    """A Chromium of its own, with a profile that goes with it."""

    def __init__(self, profile):
        to_browser, self.output = os.pipe()
        self.input, from_browser = os.pipe()

        def as_three_and_four():
            for source, target in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
                os.dup2(source, target)

        # Namespaces of its own are refused to it where the tests run as root.
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
                   f"--user-data-dir={profile}", "--hide-scrollbars", "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=as_three_and_four, close_fds=False, stderr=subprocess.DEVNULL,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.number = 0
        self.rest = b""
        self.logged = []

    def message(self):
        while b"\0" not in self.rest:
            data = os.read(self.input, 1 << 16)
            if not data:
                raise RuntimeError("the browser ended")
            self.rest += data
        one, self.rest = self.rest.split(b"\0", 1)
        return json.loads(one)

    def call(self, method, session=None, **parameters):
        self.number += 1
        request = {"id": self.number, "method": method, "params": parameters}
        if session:
            request["sessionId"] = session
        os.write(self.output, json.dumps(request).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.logged.append(answer["params"])
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--save")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Log", "Runtime"):
                browser.call(f"{domain}.enable", session)
            browser.call("Emulation.setDeviceMetricsOverride", session, width=given.width, height=given.height,
                         deviceScaleFactor=1, mobile=given.width < 600)
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if given.dark else "light"}]
            browser.call("Emulation.setEmulatedMedia", session, features=scheme)
            browser.call("Page.navigate", session, url=given.url)
            time.sleep(given.seconds)
            ask = "({text: document.body.innerText, width: document.documentElement.scrollWidth, ground: getComputedStyle(document.body).backgroundColor})"
            seen = browser.call("Runtime.evaluate", session, expression=ask, returnByValue=True)["result"]["value"]
            if given.save:
                picture = browser.call("Page.captureScreenshot", session, format="png")["data"]
                with open(given.save, "wb") as file:
                    file.write(base64.b64decode(picture))
            print(json.dumps({**seen, "logged": browser.logged}))
        finally:
            browser.process.kill()
            browser.process.wait()


main()
