"""`paceline bench proxy`: what the proxy adds to a direct call, beside other proxies."""
