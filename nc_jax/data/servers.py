"""The servers from which TFDS downloads, and whether they can be reached."""

import http.client
import threading
import urllib.error
import urllib.request

# The servers that TFDS 4.9.10 downloads from.
HOMES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "emnist": "https://biometrics.nist.gov/cs_links/EMNIST/",
    "svhn_cropped": "http://ufldl.stanford.edu/housenumbers/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "stl10": "http://ai.stanford.edu/~acoates/stl10/",
    "places365_small": "http://data.csail.mit.edu/places/places365/",
}
REACH_TIMEOUT = 3.0  # seconds; a server that needs longer to answer is taken for unreachable


def answers(url: str) -> bool:
    """Whether a server answers within `REACH_TIMEOUT`, if only with an error of HTTP."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_TIMEOUT).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # an HTTP error is an answer, too: the server can be reached
        except (OSError, http.client.HTTPException):
            pass

    # In a thread, because a socket's timeout does not limit the time of the name look-up.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(REACH_TIMEOUT)
    return answered.is_set()
