"""Whether the server of this container is ready, for HEALTHCHECK: exit status 0 or 1. Standard library only.

SIGHTLINE_HEALTH_URL names another address than /ready on SIGHTLINE_PORT. Where a certificate is configured the server
speaks HTTPS; on the way to itself its name is not checked.
"""

import os
import ssl
import sys
import urllib.request

scheme = "https" if "SIGHTLINE_TLS_CERTIFICATE" in os.environ else "http"
url = os.environ.get("SIGHTLINE_HEALTH_URL", f"{scheme}://127.0.0.1:{os.environ.get('SIGHTLINE_PORT', '8000')}/ready")
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),
    urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),
)
try:
    opener.open(url, timeout=5).close()
except OSError as error:
    sys.exit(f"{url}: {error}")
