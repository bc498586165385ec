"""One fsspec file system: opened, bounded in time, and its failures told apart.

`filesystem` is the door, `clients` what each client library is told, `parts` and `patience` how bytes travel,
`connection` what is worth another try, and `refusals` what a refusal means.
"""
