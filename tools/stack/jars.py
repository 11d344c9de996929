"""Apache Kafka's jars: pinned with hashes in kafka_jars.lock, fetched once by jgo, kept.

They lie in the user's cache, not in the checkout, so that a second clone starts at once. The lock
file names every jar of the broker's closure and an slf4j binding. The binding is resolved by
itself: in one endpoint with the broker its parent's version management pulls kafka-clients back
to an older version, and the broker dies with NoSuchMethodError.

`python -m tools.stack.jars` resolves anew and rewrites the lock file.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import requests
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.env import EnvironmentBuilder, LinkStrategy
from jgo.maven import MavenContext, PythonResolver

from tools.stack.errors import FetchError

KAFKA_VERSION = "4.4.0"
ENDPOINTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
LOCK_FILE = Path(__file__).with_name("kafka_jars.lock")
CACHE_SETTING = "WATTVEND_STACK_CACHE_DIR"
REPOSITORY_SETTING = "WATTVEND_STACK_MAVEN_URL"
DOWNLOADS_AT_ONCE = 4
DOWNLOAD_TIMEOUT_S = 20
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned jar. `sha256` is of the file."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True, slots=True)
class FetchStatus:
    """How far the fetch is. `waiting`: another process is fetching the same."""

    jars: int
    jars_total: int
    fetched_bytes: int
    total_bytes: int
    waiting: bool = False

    def __str__(self) -> str:
        size_mb = round(self.total_bytes / 1e6)
        if self.waiting:
            return f"another process is fetching Apache Kafka {KAFKA_VERSION}: waiting for it"
        counted = f"{self.jars}/{self.jars_total} jars"
        return f"fetching Apache Kafka {KAFKA_VERSION} ({size_mb} MB): {counted}"


Progress = Callable[[FetchStatus], None]


def cache_directory() -> Path:
    """Return where fetched software is kept between checkouts."""
    chosen = os.environ.get(CACHE_SETTING)
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "wattvend"


def locked_jars() -> list[Jar]:
    """Read the lock file: a line is `group:artifact:version size sha256`."""
    jars = []
    for line in LOCK_FILE.read_text("ascii").splitlines():
        if line and not line.startswith("#"):
            coordinate, size, sha256 = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, int(size), sha256))
    return jars


def installed_jars(cache: Path) -> tuple[Path, ...] | None:
    """Return the paths of all jars, or None where one is missing or of another size."""
    paths = []
    for jar in locked_jars():
        path = jar_directory(cache) / jar.file_name
        if not path.is_file() or path.stat().st_size != jar.size_bytes:
            return None
        paths.append(path)
    return tuple(paths)


def jar_directory(cache: Path) -> Path:
    return cache / f"kafka-{KAFKA_VERSION}"


def fetch(progress: Progress = lambda _: None, cache: Path | None = None) -> tuple[Path, ...]:
    """Return the paths of all jars, fetching what is missing; blocking.

    Raise FetchError with what to do where the network, a proxy or the disk says no, or where a
    fetched file is not the pinned one.
    """
    cache = cache or cache_directory()
    if (paths := installed_jars(cache)) is not None:
        return paths
    jars = locked_jars()
    total_bytes = sum(jar.size_bytes for jar in jars)
    try:
        jar_directory(cache).mkdir(parents=True, exist_ok=True)
        waiting = FetchStatus(0, len(jars), 0, total_bytes, waiting=True)
        with one_at_a_time(cache / "fetch.lock", lambda: progress(waiting)):
            fetch_missing(cache, jars, progress)
    except OSError as error:
        # requests' errors are OSErrors too.
        raise FetchError(advice(error)) from error
    paths = installed_jars(cache)
    assert paths is not None
    return paths


@contextlib.contextmanager
def one_at_a_time(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold a lock between processes; call `waits` once if another one holds it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Meter:
    """Counts what the downloads of several threads have brought, and tells them to stop."""

    def __init__(self, jars: list[Jar], present: list[Jar], progress: Progress) -> None:
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._progress = progress
        self._jars_total = len(jars)
        self._total_bytes = sum(jar.size_bytes for jar in jars)
        self._jars = len(present)
        self._bytes = sum(jar.size_bytes for jar in present)
        self.add()

    def add(self, *, size_bytes: int = 0, jars: int = 0) -> None:
        if self.stop.is_set():
            raise FetchError("the fetch was stopped")
        with self._lock:
            self._bytes += size_bytes
            self._jars += jars
            status = FetchStatus(self._jars, self._jars_total, self._bytes, self._total_bytes)
            self._progress(status)


def fetch_missing(cache: Path, jars: list[Jar], progress: Progress) -> None:
    present = [jar for jar in jars if is_present(cache, jar)]
    missing = [jar for jar in jars if jar not in present]
    meter = Meter(jars, present, progress)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        futures = [pool.submit(fetch_one, cache, jar, meter) for jar in missing]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            meter.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def is_present(cache: Path, jar: Jar) -> bool:
    path = jar_directory(cache) / jar.file_name
    return path.is_file() and digest(path) == jar.sha256


def fetch_one(cache: Path, jar: Jar, meter: Meter) -> None:
    """Fetch one jar into its place, whole and verified, or raise."""
    for attempt in range(1, ATTEMPTS + 1):
        # A directory of its own: jgo takes any file in its cache for whole and right.
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
            try:
                path = download(jar, Path(scratch), meter)
                if digest(path) == jar.sha256:
                    path.replace(jar_directory(cache) / jar.file_name)
                    meter.add(jars=1)
                    return
                meter.add(size_bytes=-path.stat().st_size)
                reason: Exception = FetchError(
                    f"{jar.file_name} is not the pinned one: sha256 {digest(path)} instead of "
                    f"{jar.sha256}. A proxy or mirror may have changed it; name a repository "
                    f"to fetch from: {REPOSITORY_SETTING}=<address>"
                )
            except (requests.RequestException, RuntimeError) as error:
                reason = error
        if attempt == ATTEMPTS:
            raise reason if isinstance(reason, FetchError) else FetchError(advice(reason))


def download(jar: Jar, scratch: Path, meter: Meter) -> Path:
    @contextlib.contextmanager
    def count(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield lambda size_bytes: meter.add(size_bytes=size_bytes)

    resolver = PythonResolver(progress_callback=count)
    component = context(scratch, resolver).project(jar.group, jar.artifact).at_version(jar.version)
    return Path(component.artifact(packaging="jar").resolve())


def context(scratch: Path, resolver: PythonResolver | None = None) -> MavenContext:
    repository = os.environ.get(REPOSITORY_SETTING, MAVEN_CENTRAL_URL).rstrip("/")
    return MavenContext(
        resolver=resolver,
        repo_cache=scratch,
        remote_repos={"central": repository},
        timeout=DOWNLOAD_TIMEOUT_S,
    )


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def advice(error: Exception) -> str:
    repository = os.environ.get(REPOSITORY_SETTING)
    place = repository or "Maven Central"
    if isinstance(error, requests.exceptions.ProxyError):
        do = "Check HTTPS_PROXY (and NO_PROXY)"
    elif isinstance(error, requests.exceptions.SSLError):
        do = "Name the certificates to trust: REQUESTS_CA_BUNDLE=<file>"
    elif isinstance(error, (requests.ConnectionError, requests.Timeout)):
        do = "Check the network; behind a proxy set HTTPS_PROXY"
    elif isinstance(error, requests.RequestException | RuntimeError):
        do = "Check the address, or behind a proxy HTTPS_PROXY"
    else:
        do = f"Choose a directory that can be written: {CACHE_SETTING}=<directory>"
    return (
        f"cannot fetch Apache Kafka {KAFKA_VERSION} from {place}: {error}\n"
        f"{do}; or name a mirror: {REPOSITORY_SETTING}=<address>. It is fetched once and then "
        f"kept in {cache_directory()}."
    )


def write_lock_file() -> None:
    """Resolve the endpoints and pin every jar of their closure."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for endpoint in ENDPOINTS:
            builder = EnvironmentBuilder(
                context=context(Path(scratch) / "repository"),
                cache_dir=Path(scratch) / "environments",
                link_strategy=LinkStrategy.HARD,
            )
            builder.from_endpoint(endpoint=endpoint)
        for path in sorted((Path(scratch) / "repository").rglob("*.jar")):
            group = ".".join(path.relative_to(Path(scratch) / "repository").parts[:-3])
            coordinate = f"{group}:{path.parts[-3]}:{path.parts[-2]}"
            found[coordinate] = f"{coordinate} {path.stat().st_size} {digest(path)}"
    head = (
        f"# Apache Kafka {KAFKA_VERSION} and an slf4j binding: group:artifact:version, size in "
        "bytes, sha256.\n# Written by `python -m tools.stack.jars`.\n"
    )
    LOCK_FILE.write_text(head + "\n".join(found.values()) + "\n", "ascii")


if __name__ == "__main__":
    write_lock_file()
    print(f"wrote {LOCK_FILE} ({len(locked_jars())} jars)")
