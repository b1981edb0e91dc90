"""Who calls and what the caller may do: certificates, tokens, roles, limits, the audit trail."""
