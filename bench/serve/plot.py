from bench.serve.results import Results


def write(r, folder):
    return []
