"""What shows that each part of this executor works: real checks, measured here and now, that touch no running work."""
