"""The ODE engine beside its peers: overhead, adaptivity, independence, gradients, likelihoods."""
