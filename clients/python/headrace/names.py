"""Resource names as people type them: `digits` is short for `models/digits` where a model is asked for.

Knows no rule of what an id may hold: the server refuses bad names, and says how a right one looks.
"""


def full_name(collection: str, text: str) -> str:
    """`collection/text`, or `text` itself when it holds a slash already or is empty."""
    return text if not text or "/" in text else f"{collection}/{text}"


def model_name(text: str) -> str:
    """`digits`, `digits@champion` or any full name of a model or a version."""
    return full_name("models", text)


def dataset_name(text: str) -> str:
    """`digits` or any full name of a data set or a version."""
    return full_name("datasets", text)


def job_name(text: str) -> str:
    """The id of a job or its full name."""
    return full_name("trainingJobs", text)


def display_name(name: str) -> str:
    """A name of a version as people say it: "digits v3" for a model, "digits 6e06f246" for a data set."""
    collection, _, rest = name.partition("/")
    parent, is_version, version = rest.partition("/versions/")
    if not is_version:
        return rest or name
    return f"{parent} v{version}" if collection == "models" else f"{parent} {version[:8]}"


def short_name(name: str) -> str:
    """What follows the collection: `digits/versions/3` of `models/digits/versions/3`."""
    return name.partition("/")[2] or name
