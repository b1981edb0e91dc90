"""Facts about certificates: names, expiry, revocation. Knows no request and no role."""
