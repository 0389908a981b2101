"""The one thing pyproject.toml cannot say: the optional compiled JPEG decoder.

Without libjpeg-turbo's headers or a C compiler the installation succeeds without it, and images are decoded by OpenCV.
It is limited to the stable ABI, so one build serves every Python from 3.11 on.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "imgcls_jax.data._jpeg",
            sources=["imgcls_jax/data/_jpeg.c"],
            libraries=["jpeg"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=True,
        )
    ]
)
