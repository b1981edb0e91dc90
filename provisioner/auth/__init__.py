"""Authentication, authorization and auditing: certificates, tokens, roles, limits, the audit trail."""
