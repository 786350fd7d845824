"""Serves the files of /feed: the smallest personal service there is."""

import functools
import http.server

handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/feed")
http.server.ThreadingHTTPServer(("", 8090), handler).serve_forever()
