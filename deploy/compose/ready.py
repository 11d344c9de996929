"""Leave with 0 where the service at this URL says that it is ready: the containers' health check.

`python ready.py https://localhost:27101/health/ready /tls/ca.crt`
"""

import ssl
import sys
import urllib.request

url, authority = sys.argv[1:]
trusted = ssl.create_default_context(cafile=authority)
with urllib.request.urlopen(url, timeout=3, context=trusted):  # noqa: S310 - our own URL
    pass  # Anything but 200 raises.
