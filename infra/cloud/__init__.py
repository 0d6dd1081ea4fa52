"""The cloud side: what the `azure:` section of an environment makes before the environment.

A Pulumi program of its own with a stack of its own; what it makes is handed to the environment as
variables in its env file, as a local site does. Nothing here was run against Azure: the resources
are checked against pulumi-azure-native's own types, the program under mocks and on a real engine
with a double of the provider.
"""
