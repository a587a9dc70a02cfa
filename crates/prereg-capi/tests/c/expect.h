/* Checks, which end the program when one fails. */
#ifndef EXPECT_H
#define EXPECT_H

#include <errno.h>
#include <inttypes.h>
#include <prereg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(condition)                                                                    \
	do {                                                                                 \
		if (!(condition)) {                                                          \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                             \
		}                                                                            \
	} while (0)
#define MESSAGE_HAS(why, text) EXPECT(strstr((why).message, text) != NULL && strlen((why).message) == (why).length)

/* A struct of zeros with its size. */
#define SIZED(variable) (memset(&(variable), 0, sizeof(variable)), (void)((variable).size = sizeof(variable)))

#define PAGE ((uint64_t)4096)

#endif
