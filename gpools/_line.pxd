cimport cython


@cython.final
cdef class Line:
    cdef public object _alarm
    cdef public object _hub
    cdef public double _oldest
    cdef public bint _scheduled
    cdef public double _too_late
    cdef public object budget
    cdef public object errors
    cdef public object idle
    cdef public object limit
    cdef public object maker
    cdef public object refusal
    cdef public object shed
    cdef public object size
    cdef public object waiters

    cpdef bint open(self)
    cpdef bint room(self)
    cpdef claim(self)
    cpdef take(self, double arrived=*)
    cpdef vacate(self)
    cpdef wake(self)
    cpdef look(self)
    cpdef _serve(self)
    cpdef _nobody_left(self)
    cpdef _pass_on(self)
    cpdef _shed_first(self)
