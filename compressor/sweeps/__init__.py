"""Many runs of one recipe that share their stages: points, their tree, their launch, their page."""
